// Command qmp-only uses package qmp alone: it connects to any QEMU, prints what that QEMU can do for COLO, and follows its events.
//
//	qemu-system-x86_64 -qmp unix:/tmp/vm.qmp,server=on,wait=off …
//	qmp-only /tmp/vm.qmp
//
// A QMP socket of QEMU serves one client at a time: give QEMU a second one for this program if the first is in use.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: qmp-only SOCKET")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "qmp-only:", err)
		os.Exit(1)
	}
}

// run returns nil when ctx ends or QEMU does.
func run(ctx context.Context, socket string, out io.Writer) error {
	dctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := qmp.Dial(dctx, socket, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := printFeatures(ctx, c, out); err != nil {
		return err
	}
	// Follow asks for the state at the beginning and whenever events were lost, so what is printed is right again after every gap.
	err = c.Follow(ctx, qmp.SubscribeOptions{},
		func(ctx context.Context) error {
			m, err := c.MachineStatus(ctx)
			if err == nil {
				fmt.Fprintf(out, "the guest is %s; COLO mode %s\n", m.Status.Status, m.Colo.Mode)
			}
			return err
		},
		func(e qmp.Event) error {
			fmt.Fprintf(out, "%s  %s %s\n", e.Time.Format("15:04:05.000000"), e.Name, e.Data)
			return nil
		})
	if ctx.Err() != nil || errors.Is(err, qmp.ErrClosed) {
		return nil
	}
	return err
}

func printFeatures(ctx context.Context, c *qmp.Client, out io.Writer) error {
	f, err := qmp.Probe(ctx, c)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "QEMU", f.Version)
	for _, name := range qmp.FeatureNames() {
		has := "no "
		if f.Has(name) {
			has = "yes"
		}
		fmt.Fprintf(out, "  %s  %s\n", has, name)
	}
	// Require tells in one error what is missing and since when QEMU has it.
	var lacks *qmp.UnsupportedError
	switch err := f.Require(qmp.ColoFeatures()...); {
	case errors.As(err, &lacks):
		fmt.Fprintf(out, "it can't protect VMs: %s came with QEMU %s\n", lacks.Feature, lacks.MinQEMU)
	case err != nil:
		return err
	default:
		fmt.Fprintln(out, "it can protect VMs")
	}
	return nil
}
