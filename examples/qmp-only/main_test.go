package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// TestRun lets the program watch a QEMU whose state is changed over a second socket.
func TestRun(t *testing.T) {
	program := qemutest.QEMU(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "qo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	first, second := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	qemu := exec.CommandContext(ctx, program, "-M", "none", "-nodefaults", "-display", "none", "-S",
		"-qmp", "unix:"+first+",server=on,wait=off", "-qmp", "unix:"+second+",server=on,wait=off")
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = qemu.Process.Kill()
		_ = qemu.Wait()
	})
	c := dial(t, ctx, second) // it listens on the first before the second

	told, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, first, out)
		_ = out.Close() // never fails
		ended <- err
	}()
	want := []string{"QEMU ", "yes  x-colo", "it can protect VMs", "the guest is prelaunch", " RESUME ", " STOP ", " SHUTDOWN "}
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		line := lines.Text()
		if len(want) > 0 && strings.Contains(line, want[0]) {
			want = want[1:]
		}
		switch {
		case strings.HasPrefix(line, "the guest is"):
			err = c.Cont(ctx)
		case strings.Contains(line, " RESUME "):
			err = c.Stop(ctx)
		case strings.Contains(line, " STOP "):
			err = c.Quit(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 {
		t.Errorf("never printed, or not in this order: %q", want)
	}
}

func dial(t *testing.T, ctx context.Context, path string) *qmp.Client {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := qmp.Dial(ctx, path, nil)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
