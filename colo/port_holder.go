package colo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/internal/netns"
)

// pathBroken says why no heartbeats can go over a path, so that it doesn't look like a silent peer only.
func (n *Node) pathBroken(ev heartbeat.Event) {
	text := fmt.Sprintf("no heartbeats over link %s: %v", ev.Path, ev.Err)
	switch {
	case errors.Is(ev.Err, syscall.EADDRINUSE):
		holder := "another program"
		for _, l := range n.cfg.Links {
			if l.Name != ev.Path {
				continue
			}
			if who := udpHolder(n.cfg.Netns, netip.AddrPortFrom(l.Address, uint16(n.cfg.HeartbeatPort))); who != "" {
				holder = who
			}
		}
		text += fmt.Sprintf(": %s has the port: end it, or set heartbeat.port (and heartbeat-port on the peer) to a free one", holder)
	case errors.Is(ev.Err, syscall.EADDRNOTAVAIL):
		text += ": give this host the link's address, or name the one it has in links"
	}
	n.cfg.Log.Error(text, "node", n.cfg.Name)
	n.events.send(Event{Time: time.Now(), Node: n.cfg.Name, Kind: "peer", Text: text, Fields: map[string]any{"event": ev.Kind, "path": ev.Path}})
}

// udpHolder finds the process that has bound an IPv4 UDP address in a network namespace; empty if it can't be seen.
func udpHolder(ns string, at netip.AddrPort) string {
	var table []byte
	if err := netns.Do(ns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/udp")
		return err
	}); err != nil {
		return ""
	}
	inode := udpInode(table, at)
	if inode == "" {
		return ""
	}
	sockets, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range sockets {
		if to, err := os.Readlink(fd); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			return "process " + pid
		}
		return fmt.Sprintf("%s (process %s)", bytes.TrimSpace(name), pid)
	}
	return ""
}

// udpInode looks an address up in the kernel's table, also as bound to all addresses.
func udpInode(table []byte, at netip.AddrPort) string {
	if !at.Addr().Is4() {
		return ""
	}
	b := at.Addr().As4()
	port := fmt.Sprintf(":%04X", at.Port())
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:])) + port
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 10 || (f[1] != want && f[1] != "00000000"+port) {
			continue
		}
		if _, err := strconv.ParseUint(f[9], 10, 64); err == nil {
			return f[9]
		}
	}
	return ""
}
