package lab

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestALabThatIsStartingAnswers(t *testing.T) {
	folders(t)
	f, err := MakeFolder("new")
	if err != nil {
		t.Fatal(err)
	}
	h, err := OpenLab("new")
	if err != nil {
		t.Fatal(err)
	}
	// Its process hasn't come so far that it listens.
	if _, err := h.Status(t.Context()); !errors.Is(err, ErrStarting) {
		t.Errorf("without a socket: got %v", err)
	}
	c, ctx, err := OpenControl(t.Context(), filepath.Join(f.Path, controlName), func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		err := c.Step(ctx, "the guest boots", time.Hour, func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		ended <- errors.Join(err, c.Close(), f.Release())
	}()
	<-begun
	if _, err := h.Status(t.Context()); !errors.Is(err, ErrStarting) || !strings.Contains(err.Error(), "the guest boots") {
		t.Errorf("in the middle: got %v", err)
	}
	if err := h.Down(t.Context(), time.Minute); err != nil {
		t.Errorf("down: %v", err)
	}
	if err := <-ended; !errors.Is(err, ErrInterrupted) {
		t.Errorf("the start has ended with %v", err)
	}
	if exists(f.Path) {
		t.Error("its folder is left")
	}
}

func TestAStepHasALimit(t *testing.T) {
	c := &Control{say: func(string, ...any) {}}
	err := c.Step(t.Context(), "the guest boots", time.Millisecond, func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if err == nil || !strings.Contains(err.Error(), "the guest boots: not done within 1ms") {
		t.Errorf("got %v", err)
	}
}
