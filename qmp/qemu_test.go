package qmp_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// vm is a QEMU without a guest.
type vm struct {
	cmd    *exec.Cmd
	path   string // of its first QMP socket
	second string
	exited chan struct{}
	stderr bytes.Buffer // to be read after exited
}

// startQEMU starts the QEMU of the environment with two QMP sockets. It ends
// with the test. Without a QEMU the test is skipped, except in CI.
func startQEMU(t testing.TB, args ...string) *vm {
	t.Helper()
	bin := qemutest.QEMU(t)
	// t.TempDir can be too long for a unix socket's path.
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &vm{path: filepath.Join(dir, "qmp"), second: filepath.Join(dir, "qmp2"), exited: make(chan struct{})}
	v.cmd = exec.Command(bin, append([]string{
		"-S", "-nodefaults", "-display", "none", "-accel", "tcg",
		"-qmp", "unix:" + v.path + ",server=on,wait=off",
		"-qmp", "unix:" + v.second + ",server=on,wait=off",
	}, args...)...)
	v.cmd.Dir = dir
	v.cmd.Stderr = &v.stderr
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		v.cmd.Wait()
		close(v.exited)
	}()
	t.Cleanup(func() {
		v.cmd.Process.Signal(syscall.SIGCONT)
		v.cmd.Process.Kill()
		<-v.exited
	})
	return v
}

// dial connects as soon as QEMU listens; it can only poll for that.
func (v *vm) dial(t testing.TB, path string, o *qmp.Options) *qmp.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var opts qmp.Options
	if o != nil {
		opts = *o
	}
	opts.Dial = v.retry(t)
	c, err := qmp.Dial(ctx, path, &opts)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (v *vm) retry(t testing.TB) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, path string) (net.Conn, error) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
				return conn, err
			}
			select {
			case <-tick.C:
			case <-v.exited:
				t.Fatalf("QEMU ended: %v\n%s", v.cmd.ProcessState, v.stderr.String())
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}
