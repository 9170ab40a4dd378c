package machine

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var bootScript []byte

// Machine is one that runs.
type Machine struct {
	Name string

	dir    string // of its own
	root   string
	init   int // its first process, in our numbers
	outer  *exec.Cmd
	said   *bytes.Buffer
	ended  chan struct{}
	stop   sync.Once
	stopOK error
}

// bootLimit is how long a machine may take to boot.
const bootLimit = 3 * time.Minute

// Boot boots a machine from the files of a system, which stay as they are; what it writes goes below dir. Its network has no device but lo.
func Boot(ctx context.Context, name, system, dir string) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	m := &Machine{Name: name, dir: dir, root: filepath.Join(dir, "root"), said: &bytes.Buffer{}, ended: make(chan struct{})}
	for _, d := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	script := filepath.Join(dir, "boot.sh")
	if err := os.WriteFile(script, bootScript, 0o600); err != nil {
		return nil, err
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", system, filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", m.root, "overlay", 0, layers); err != nil {
		return nil, fmt.Errorf("overlay on %s: %w", system, err)
	}
	cgroup := fmt.Sprintf("coloctl-%s-%d", name, os.Getpid())
	m.outer = exec.Command("unshare", "--mount", "--", "sh", script, m.root, name, cgroup, "outer") //nolint:noctx // it ends by Close
	m.outer.Env = environment
	m.outer.Stderr = m.said
	// Its own session: signals of a terminal are for the tests.
	m.outer.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := m.outer.StdoutPipe()
	if err == nil {
		_, err = m.outer.StdinPipe() // open for as long as we live
	}
	if err == nil {
		err = m.outer.Start()
	}
	if err != nil {
		return nil, errors.Join(err, unix.Unmount(m.root, unix.MNT_DETACH))
	}
	lines := bufio.NewReader(out)
	line, _ := lines.ReadString('\n')
	go func() {
		defer close(m.ended)
		_, _ = io.Copy(io.Discard, lines)
		_ = m.outer.Wait()
	}()
	parent, err := strconv.Atoi(strings.TrimSpace(line))
	if err == nil {
		err = m.await(ctx, parent)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot %s: %w", name, err), m.Stop())
	}
	return m, nil
}

// await waits until systemd has started everything.
func (m *Machine) await(ctx context.Context, parent int) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	state := ""
	for {
		if m.init == 0 {
			// It has other children before that one.
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(comm)) == "systemd" {
				m.init = pid
			}
		} else {
			text, _ := m.Command(ctx, "systemctl", "is-system-running").Output() // "degraded" is an exit code too
			if state = strings.TrimSpace(string(text)); state == "running" || state == "degraded" {
				return nil
			}
		}
		select {
		case <-m.ended:
			return fmt.Errorf("it ended: %s", lastLines(m.said.String(), 10))
		case <-ctx.Done():
			return fmt.Errorf("%w; systemd says %q", ctx.Err(), state)
		case <-tick.C:
		}
	}
}

// Command is a command in the machine, as a root shell there would run it, in root's home.
func (m *Machine) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := []string{"--target", strconv.Itoa(m.init), "--all", "--wdns=/root", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, argv...)...)
	cmd.Env = environment
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Stop cuts the machine's power. A second call does nothing.
func (m *Machine) Stop() error {
	m.stop.Do(func() {
		if m.init > 0 {
			_ = unix.Kill(m.init, unix.SIGKILL) // all its processes go with it
		} else {
			_ = unix.Kill(-m.outer.Process.Pid, unix.SIGKILL)
		}
		<-m.ended
		m.stopOK = unix.Unmount(m.root, unix.MNT_DETACH)
	})
	return m.stopOK
}
