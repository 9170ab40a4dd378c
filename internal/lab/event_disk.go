package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// smallState is the size of a state folder that can be filled.
const smallState = 4 << 20

// limitState makes a node's state folder, still empty, a file system that can be filled.
func limitState(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", smallState)); err != nil {
		return fmt.Errorf("a small state folder: %w", err)
	}
	return nil
}

// FillState leaves no byte free in the node's state folder.
func (n *Node) FillState() error {
	f, err := os.OpenFile(n.path("state", "ballast"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// FreeState undoes FillState.
func (n *Node) FreeState() error { return os.Remove(n.path("state", "ballast")) }

// fillStates: with full state folders the VM is served as before, and a loss is survived all the same.
var fillStates = undisturbed("the state folders of both nodes are full", func(ctx context.Context, r *Run) error {
	for _, name := range NodeNames {
		if err := r.Lab.Node(name).FillState(); err != nil {
			return err
		}
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	return r.protectedStill(ctx)
})

var freeStates = heal("the state folders have room again", func(_ context.Context, r *Run) error {
	for _, name := range NodeNames {
		if err := r.Lab.Node(name).FreeState(); err != nil {
			return err
		}
	}
	return nil
})
