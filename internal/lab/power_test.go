package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/internal/netns"
)

func init() {
	workers["hosts"] = workHosts
	workers["saysready"] = workSaysReady
}

// TestHosts does to hosts what scenarios do.
func TestHosts(t *testing.T) {
	if out := inLab(t, "hosts"); out != "" {
		t.Error(out)
	}
}

// workSaysReady is the program of workHosts: it is ready, and stays.
func workSaysReady() error {
	if err := exec.Command("sh", "-c", "sleep 100 & sleep 100 &").Run(); err != nil { // orphans of it die with the host's power too
		return err
	}
	if len(os.Args) > 2 {
		return errors.New("it ends at its start")
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("READY=1\nSTATUS=x")); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return nil
}

func workHosts() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	top, err := NewTopology(1)
	if err != nil {
		return err
	}
	defer top.Close()
	return errors.Join(tryPower(ctx, top), tryManagement(top), trySlow(ctx, top), tryFull())
}

func tryPower(ctx context.Context, top *Topology) error {
	n1 := top.Nodes["n1"]
	log, err := os.Create(Path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	var noted []string
	p := program{name: "it", host: n1, dir: Path(), argv: []string{"/proc/self/exe", "saysready"}, log: log, env: []string{envStage + "=" + stageWorker}}
	run, err := p.start(ctx, func(p *process) { noted = append(noted, p.Name) })
	if err != nil {
		return err
	}
	if pids, err := n1.processes(); err != nil || len(pids) != 3 {
		return fmt.Errorf("processes of n1: %v, %w", pids, err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := n1.nl.LinkAdd(tap); err != nil {
		return err
	}
	if err := errors.Join(n1.killAll(ctx), top.forgetNetwork("n1")); err != nil {
		return err
	}
	<-run.done
	if _, err := n1.nl.LinkByName("tap0"); err == nil {
		return errors.New("the tap has outlived the power")
	}
	if ok, err := ask(n1, linkAddr(0, 0).Addr(), 1); ok {
		return fmt.Errorf("an answer from nobody: %w", err)
	}
	p.argv = append(p.argv, "end")
	if _, err := p.start(ctx, nil); err == nil || !strings.Contains(err.Error(), "ended at its start: exit status 1") {
		return fmt.Errorf("a program that ends: %w", err)
	}
	return n1.killAll(ctx)
}

// reaches tells whether a datagram to an echo on the management network comes back, soon.
func reaches(top *Topology, from, to *Host) (bool, error) {
	stop, err := echoOn(to, mgmtAddr(to.Name).Addr(), 77)
	if err != nil {
		return false, err
	}
	defer stop()
	return ask(from, mgmtAddr(to.Name).Addr(), 77)
}

func tryManagement(top *Topology) error {
	n1, n2, w := top.Nodes["n1"], top.Nodes["n2"], top.Witness
	for _, x := range []struct {
		what               string
		do                 func() error
		peers, one, second bool // n1 reaches n2, n1 and n2 reach the witness
	}{
		{"whole", func() error { return nil }, true, true, true},
		{"parted", top.PartManagement, false, true, true},
		{"whole again", func() error { return errors.Join(top.RestoreManagement("n1"), top.RestoreManagement("n2")) }, true, true, true},
		{"n1 cut off", func() error { return top.CutManagement("n1") }, false, false, true},
		{"n1 back", func() error { return top.RestoreManagement("n1") }, true, true, true},
	} {
		if err := x.do(); err != nil {
			return fmt.Errorf("management network, %s: %w", x.what, err)
		}
		for _, y := range []struct {
			from, to *Host
			want     bool
		}{{n1, n2, x.peers}, {n1, w, x.one}, {n2, w, x.second}} {
			if got, err := reaches(top, y.from, y.to); err != nil || got != y.want {
				return fmt.Errorf("management network, %s: %s to %s: %v, %w", x.what, y.from.Name, y.to.Name, got, err)
			}
		}
	}
	return nil
}

// trySlow sends a large transfer over a slow link, in frames larger than any packet.
func trySlow(ctx context.Context, top *Topology) error {
	link := top.Links[0]
	const delay = 30 * time.Millisecond
	slow, err := link.Slow(delay, 0.02, 1)
	if err != nil {
		return err
	}
	addr := linkAddr(0, 1).Addr().String() + ":78"
	ln, err := netns.Listen(ctx, top.Nodes["n2"].Netns(), "tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	got := make(chan int, 1)
	go func() {
		n := 0
		defer func() { got <- n }()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<16)
		for {
			k, err := c.Read(buf)
			if n += k; err != nil {
				return
			}
		}
	}()
	begun := time.Now()
	c, err := netns.Dial(ctx, top.Nodes["n1"].Netns(), "tcp", addr)
	if err != nil {
		return err
	}
	if took := time.Since(begun); took < 2*delay {
		return fmt.Errorf("a connection over the slow link took %v", took)
	}
	const size = 1 << 20
	if _, err := c.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	select {
	case n := <-got:
		if n != size {
			return fmt.Errorf("%d bytes came over the slow link", n)
		}
	case <-ctx.Done():
		return errors.New("the slow link stands still")
	}
	if slow.Passed.Load() == 0 {
		return errors.New("nothing was carried")
	}
	return errors.Join(slow.Close(), link.Restore())
}

func tryFull() error {
	n := &Node{Name: "n1", lab: &Lab{opts: Options{Dir: Path()}}}
	if err := os.MkdirAll(n.path("state"), 0o700); err != nil {
		return err
	}
	if err := limitState(n.path("state")); err != nil {
		return err
	}
	defer func() { _ = syscall.Unmount(n.path("state"), 0) }()
	if err := n.FillState(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.path("state"), "x"), []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("a full folder takes more: %w", err)
	}
	return n.FreeState()
}
