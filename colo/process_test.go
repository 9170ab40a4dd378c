package colo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"
)

// TestKillEnds: a process that the kernel keeps, here one whose end nobody tells, is not waited for for ever.
func TestKillEnds(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := &process{pid: cmd.Process.Pid, p: cmd.Process, done: make(chan struct{})}
		begun := time.Now()
		if err := p.kill(context.WithoutCancel(t.Context())); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrProcessDone) {
			t.Errorf("a process that doesn't end: %v", err)
		}
		if took := time.Since(begun); took != killLimit {
			t.Errorf("waited for %s", took)
		}
		close(p.done)
		if err := p.kill(t.Context()); err != nil {
			t.Errorf("one that has ended: %v", err)
		}
	})
}
