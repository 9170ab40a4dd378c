// Command own-arbiter shows how to write an arbiter for package colo: the third voice that says which of two copies may go on when the nodes
// have lost each other. This one is a shared folder, see folder.go; a node gets it as NodeConfig.Arbiter.
//
//	own-arbiter FOLDER
//
// lets two nodes claim the same VM at the same time and prints who may go on. Whatever an arbiter is made of, package arbitertest checks it:
// see folder_test.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/coloctl/coloctl/colo/arbiter"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: own-arbiter FOLDER")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "own-arbiter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, out io.Writer) error {
	const vm = "web-1f0c" // not the VM's name alone: a new VM of that name is another one
	n1, n2 := folder{dir, "n1"}, folder{dir, "n2"}
	both := arbiter.Record{VM: vm, Generation: 1, Members: []string{"n1", "n2"}, By: "n1"}
	switch now, err := n1.Get(ctx, vm); {
	case err == nil: // from an earlier run
		both.Generation = now.Generation + 1
		both.By = now.Members[0]
	case !errors.Is(err, arbiter.ErrNoRecord):
		return err
	}
	by := map[string]folder{"n1": n1, "n2": n2}
	now, err := by[both.By].Advance(ctx, both)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "protected: ", now)

	// The link is cut. Both nodes see the same and want to go on alone.
	var group errgroup.Group
	answers := make(chan string, len(by))
	for name, a := range by {
		group.Go(func() error {
			claim := arbiter.Record{VM: vm, Generation: now.Generation + 1, Members: []string{name}, By: name}
			got, err := a.Advance(ctx, claim)
			if err == nil {
				answers <- fmt.Sprintf("%s has %s", name, arbiter.Judge(claim, got))
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	close(answers)
	for a := range answers {
		fmt.Fprintln(out, a)
	}
	now, err = n1.Get(ctx, vm)
	fmt.Fprintln(out, "goes on:   ", now)
	return err
}
