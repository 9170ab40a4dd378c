// Command watch-events follows a node: it runs a VM, unprotected, until it is interrupted, and prints every event as a line of JSON, for jq or
// a log collector. It needs neither root nor a peer: the VM has no NIC.
//
//	watch-events -dir /tmp/we -accel tcg | jq .
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "watch-events:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("watch-events", flag.ContinueOnError)
	dir := f.String("dir", "", "`folder` for the disk, state and sockets; a short path")
	qemu := f.String("qemu", "qemu-system-x86_64", "`program`")
	qemuImg := f.String("qemu-img", "qemu-img", "`program`")
	accel := f.String("accel", "kvm", "kvm, or tcg with QEMU 11 or newer")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("-dir is missing")
	}
	store, err := state.Open(filepath.Join(*dir, "state.db"), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	n, err := colo.NewNode(ctx, colo.NodeConfig{
		Name: "n1", RunDir: filepath.Join(*dir, "run"), StorageDir: *dir, Store: store,
		QEMU: []string{*qemu}, QEMUImg: []string{*qemuImg}, Accel: *accel,
		Links: []colo.Link{{Name: "link0", Address: netip.MustParseAddr("127.0.0.1")}}, Ports: colo.PortRange{First: 9000, Last: 9099},
		HeartbeatKey: make([]byte, 32), // nobody is there to be talked to
		Log:          slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()

	// Before the first thing happens, and until the last has: the channel is closed when the context ends.
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	events := n.Watch(watch)
	printed := make(chan error, 1)
	go func() { printed <- follow(n, events, out) }()
	defer func() {
		stop()
		err = errors.Join(err, <-printed)
	}()
	return live(ctx, n)
}

const vm = "web"

// live makes the VM at the first time, starts it, and ends it when ctx does.
func live(ctx context.Context, n *colo.Node) error {
	spec := &colo.Spec{Name: vm, Memory: 128 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "web.raw", Size: 64 << 20}}}
	if err := n.Create(ctx, spec); err != nil && !errors.Is(err, colo.ErrVMExists) {
		return err
	}
	// An interrupted start would go on all the same, and it is short.
	if err := n.Start(context.WithoutCancel(ctx), vm); err != nil {
		return err
	}
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return n.Stop(last, vm, colo.StopOptions{Force: true}) // this VM has no system that could be asked
}

// follow prints events until there are no more. Who is too slow for them loses some, and is told so by the next one: then what was missed
// has to be asked for, and that is what Status is for.
func follow(n *colo.Node, events <-chan colo.Event, out io.Writer) error {
	enc := json.NewEncoder(out)
	for e := range events {
		if e.Missed > 0 {
			s, err := n.Status(context.Background(), vm)
			if err != nil {
				return err
			}
			if err := enc.Encode(s); err != nil {
				return err
			}
		}
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return nil
}
