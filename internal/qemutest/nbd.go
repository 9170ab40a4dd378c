package qemutest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// NBD is an NBD server, with a raw file for each export. It ends with the test.
type NBD struct {
	Address string // host:port
	dir     string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// ServeNBD serves files of this content, by export. One whose name begins with "ro" can't be written.
func ServeNBD(t testing.TB, files map[string][]byte) *NBD {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &NBD{Address: l.Addr().String(), dir: t.TempDir(), exited: make(chan struct{})}
	_ = l.Close()
	_, port, _ := strings.Cut(s.Address, ":")
	pid := filepath.Join(s.dir, "pid") // written when all is served
	args := []string{"--pidfile", pid, "--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=" + port}
	for name, content := range files {
		if err := os.WriteFile(s.File(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		i, readOnly, writable := len(args), "off", "on"
		if strings.HasPrefix(name, "ro") {
			readOnly, writable = "on", "off"
		}
		args = append(args, "--blockdev", fmt.Sprintf("driver=file,node-name=f%d,filename=%s,read-only=%s", i, s.File(name), readOnly),
			"--export", fmt.Sprintf("type=nbd,id=e%d,node-name=f%d,name=%s,writable=%s", i, i, name, writable))
	}
	s.cmd = exec.Command(Tool(t, "qemu-storage-daemon"), args...) //nolint:noctx // ended by Kill
	var stderr bytes.Buffer
	s.cmd.Stderr = &stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.exited)
		_ = s.cmd.Wait()
	}()
	t.Cleanup(s.Kill)
	for !exists(pid) {
		select {
		case <-s.exited:
			t.Fatalf("the NBD server has ended: %s", stderr.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return s
}

// File is where an export's content is.
func (s *NBD) File(export string) string {
	return filepath.Join(s.dir, strings.ReplaceAll(export, "/", "_"))
}

// Freeze stops the server as a network that is cut would: nothing comes back. Thaw lets it go on.
func (s *NBD) Freeze() { _ = s.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *NBD) Thaw() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the server and waits for its end.
func (s *NBD) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}
