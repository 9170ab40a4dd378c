package colo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// process is a QEMU that outlives this program: it has a session of its own and no parent-death signal.
type process struct {
	pid  int
	p    *os.Process
	done chan struct{} // closed at its end
	end  error         // how it ended; valid after done
	log  string        // file with what it printed
}

// startProcess starts it as another user unless that is nil.
func startProcess(netnsPath string, user *User, argv []string, logFile string) (*process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it must not end with a context of ours
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if user != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
	}
	if err := netns.Start(netnsPath, cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	p := &process{pid: cmd.Process.Pid, p: cmd.Process, done: make(chan struct{}), log: logFile}
	go func() { // ends with the process, which somebody must reap
		p.end = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// findProcess takes over a process that another run of this program has started. It returns nil when that process has ended: the start time
// tells it from a later one with the same number.
func findProcess(pid int, startTicks uint64, logFile string) (*process, error) {
	p, err := os.FindProcess(pid) // holds a pidfd, so the number can't come to mean another process from here on
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // no such process
	}
	if ticks, state, err := procStat(pid); err != nil || ticks != startTicks || state == 'Z' {
		_ = p.Release()
		return nil, nil //nolint:nilerr,nilnil // it is another one
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		_ = p.Release()
		return nil, nil //nolint:nilnil // it has ended in this moment
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	out := &process{pid: pid, p: p, done: make(chan struct{}), log: logFile}
	go func() { // ends with the process
		defer func() { _ = unix.Close(fd) }()
		for {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				break
			}
		}
		close(out.done)
	}()
	return out, nil
}

// killLimit is how long a process may take to end once it was killed. The kernel keeps one for as long as a disk of its doesn't answer.
const killLimit = 30 * time.Second

// kill ends the process and waits until it has gone, but not for ever. It may be called again.
func (p *process) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if err := p.p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d does not end: %w", p.pid, context.Cause(ctx))
	}
}

// frozen says whether somebody has stopped the process (SIGSTOP or a debugger).
func (p *process) frozen() bool {
	_, state, err := procStat(p.pid)
	return err == nil && (state == 'T' || state == 't')
}

// lastWords is the last line of what the process printed that is no warning, which it outlived.
func (p *process) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	const most = 64 << 10
	text = text[max(0, len(text)-most):]
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, l := range slices.Backward(lines) {
		if !strings.Contains(l, ": warning: ") {
			return l
		}
	}
	return ""
}

// ownerOf says whose a file is.
func ownerOf(st os.FileInfo) (uid, gid int, ok bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(sys.Uid), int(sys.Gid), true
}

// readProc reads a short file of the kernel's, for which os.ReadFile, which tries to wait for it with all others, takes four times as many system calls.
func readProc(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 1024)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return b[:n], nil
}

// procStat reads a process's start time, in clock ticks since boot, and its state letter.
func procStat(pid int) (startTicks uint64, state byte, err error) {
	text, err := readProc(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the name in parentheses, which may itself hold blanks and parentheses.
	i := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[i+1:]))
	const stateField, startField = 0, 19 // the 3rd and the 22nd of proc(5), which counts from 1 and from the beginning
	if i < 0 || len(fields) <= startField {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	startTicks, err = strconv.ParseUint(fields[startField], 10, 64)
	return startTicks, fields[stateField][0], err
}
