package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// TestRun interrupts the program when the VM runs, twice: the second time it finds the VM there.
func TestRun(t *testing.T) {
	qemu, img := qemutest.QEMU(t), qemutest.Img(t)
	dir, err := os.MkdirTemp("/tmp", "we") // short: it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for range 2 {
		ctx, interrupt := context.WithTimeout(t.Context(), time.Minute)
		told, out := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			err := run(ctx, []string{"-dir", dir, "-qemu", qemu, "-qemu-img", img, "-accel", "tcg"}, out)
			_ = out.Close() // never fails
			ended <- err
		}()
		var states []colo.State
		for dec := json.NewDecoder(told); ; {
			var e colo.Event
			if err := dec.Decode(&e); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if e.Kind == "state" {
				states = append(states, e.State)
			}
			if e.State == colo.Solo {
				interrupt()
			}
		}
		interrupt()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if want := []colo.State{colo.Starting, colo.Solo, colo.Stopping, colo.Stopped}; !slices.Equal(states, want) {
			t.Errorf("states %v, want %v", states, want)
		}
	}
}
