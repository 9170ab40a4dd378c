package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// killAll kills every process of a host and returns when none is left: all whose network is the host's, whoever started them.
func (h *Host) killAll(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := h.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("%s: kill process %d: %w", h.Name, pid, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: processes %v don't end: %w", h.Name, pids, context.Cause(ctx))
		}
	}
}

// processes are those in the host's network, but for this one, whose threads come and go there.
func (h *Host) processes() ([]int, error) {
	var own syscall.Stat_t
	if err := syscall.Stat(h.Netns(), &own); err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, path := range paths {
		var st syscall.Stat_t
		if syscall.Stat(path, &st) != nil { // it has just ended
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err == nil && st.Ino == own.Ino && st.Dev == own.Dev && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out, nil
}

// forget makes the host's network what it is after a boot: taps are gone, and the routes of interfaces are those that come with their addresses.
func (h *Host) forget(addrs map[string]*netlink.Addr) error {
	links, err := h.nl.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if l.Type() == "tuntap" || l.Type() == "ifb" {
			errs = append(errs, h.nl.LinkDel(l))
			continue
		}
		if addr := addrs[l.Attrs().Name]; addr != nil {
			errs = append(errs, h.nl.AddrDel(l, addr), h.nl.AddrAdd(l, addr))
		}
	}
	return errors.Join(errs...)
}

// forgetNetwork is [Host.forget] for a node.
func (t *Topology) forgetNetwork(node string) error {
	addrs := map[string]*netlink.Addr{}
	var err error
	for _, l := range t.Links {
		if addrs[l.Name], err = netlink.ParseAddr(l.Addrs[node].String()); err != nil {
			return err
		}
	}
	return t.Nodes[node].forget(addrs)
}
