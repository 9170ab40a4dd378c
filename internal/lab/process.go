package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/coloctl/coloctl/internal/netns"
)

// A process is a daemon that the lab has started on one of its hosts, as a service manager does: it says when it is ready.
type process struct {
	Name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; after done

	wanted atomic.Bool // its end is
}

// program says what to start.
type program struct {
	name string
	host *Host
	dir  string // of its notification socket; short
	argv []string
	log  *os.File
	env  []string
	// quiet says that the program can't say when it is ready.
	quiet bool
}

// start returns when the program is ready; ended is called when it has ended without having been told to.
func (p program) start(ctx context.Context, ended func(*process)) (*process, error) {
	socket := filepath.Join(p.dir, "notify")
	_ = os.Remove(socket) // of an earlier start
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	out := &process{Name: p.name, cmd: exec.CommandContext(context.WithoutCancel(ctx), p.argv[0], p.argv[1:]...), done: make(chan struct{})}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, envStage+"=") {
			out.cmd.Env = append(out.cmd.Env, e)
		}
	}
	out.cmd.Env = append(append(out.cmd.Env, "NOTIFY_SOCKET="+socket), p.env...)
	out.cmd.Stdout, out.cmd.Stderr, out.cmd.Dir = p.log, p.log, p.dir
	out.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what a terminal sends is for the lab
	if err := netns.Start(p.host.Netns(), out.cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), notify.Close())
	}
	ready := make(chan struct{})
	go func() { // until the process has ended and the socket is closed
		buf, said := make([]byte, 4096), false
		for {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			if !said && strings.Contains(string(buf[:n]), "READY=1") {
				said = true
				close(ready)
			}
		}
	}()
	go func() {
		out.err = out.cmd.Wait()
		_ = notify.Close() // nobody else says anything on it
		close(out.done)
		if !out.wanted.Load() && ended != nil {
			ended(out)
		}
	}()
	if p.quiet {
		return out, nil
	}
	select {
	case <-ready:
		return out, nil
	case <-out.done:
		out.wanted.Store(true)
		return nil, fmt.Errorf("%s ended at its start: %w; its log: %s", p.name, exitError(out.err), p.log.Name())
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("%s doesn't become ready: %w", p.name, context.Cause(ctx)), out.kill())
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// signal sends a signal that doesn't end it.
func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// kill ends it without a word and waits. A second call does nothing.
func (p *process) kill() error {
	p.wanted.Store(true)
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
