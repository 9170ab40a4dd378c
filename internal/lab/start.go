package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The files that a lab's process inherits, by number, and the environment that tells it what it is.
const (
	fdReport   = 3 // its end of the pipe on which it says that it is ready, or why it can't be
	fdLifeline = 4 // at end of file the starter is dead, and so shall the lab be
	fdLock     = 5 // the folder's lock

	envStage  = "COLOCTL_LAB_STAGE"
	envFolder = "COLOCTL_LAB_FOLDER" // the folder's path outside
)

// StartOptions say how a lab's process runs.
type StartOptions struct {
	// Args are the arguments of this program, without its name, that the worker runs with.
	Args []string
	// Env is added to this program's environment.
	Env []string
	// Detach lets the lab outlive its starter: it gets a session of its own and writes to the file Log in its folder.
	Detach bool
	Log    string
	// Tell gets what a detached lab says until it is ready.
	Tell io.Writer
	// Stdout and Stderr of a lab that isn't detached.
	Stdout, Stderr *os.File
	// Probe ends the lab as soon as its surroundings are there, instead of starting a worker.
	Probe bool
	// Grace is how long an interrupted lab may clean up before it is killed. Default 30 s.
	Grace time.Duration
}

// report is what a stage tells its starter: any number of times what it does, and once how that ended.
type report struct {
	Say    string `json:",omitempty"`
	Ready  bool
	Op     string        `json:",omitempty"`
	Error  string        `json:",omitempty"`
	Errno  syscall.Errno `json:",omitempty"`
	Domain string        `json:",omitempty"` // "namespace": explain Errno as a refusal of namespaces
}

// Start runs the calling program again inside a new lab's namespaces. Without Detach it returns when the lab has ended, with an [ExitError]
// if that wasn't well; when ctx ends it interrupts the lab and waits. With Detach it returns when the worker has called [Ready].
// The folder stays the caller's to remove.
func Start(ctx context.Context, f *Folder, o StartOptions) error {
	if err := checkTun(); err != nil {
		return err
	}
	// The parent-death signal is sent when the thread that started the process ends, and threads end with their locked goroutine.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	reportR, reportW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reportR.Close()
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, reportW.Close())
	}
	defer lifeW.Close()
	// Its end is not tied to ctx: an interrupted lab gets time to clean up, see attend.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", o.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envStage+"="+stageInit, envFolder+"="+f.Path)
	cmd.Env = append(cmd.Env, o.Env...)
	if o.Probe {
		cmd.Env = append(cmd.Env, envProbe+"=1")
	}
	cmd.ExtraFiles = []*os.File{reportW, lifeR, f.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if o.Detach {
		cmd.SysProcAttr.Setsid = true
		log, err := os.OpenFile(o.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return errors.Join(err, reportW.Close(), lifeR.Close())
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Env = append(cmd.Env, envDetached+"=1")
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		// Its own group: what a terminal sends reaches it once, through us.
		cmd.SysProcAttr.Setpgid = true
		cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	}
	err = cmd.Start()
	_ = errors.Join(reportW.Close(), lifeR.Close()) // the child has its own
	if err != nil {
		return namespaceError("make the lab's namespaces", err)
	}
	if o.Detach {
		return awaitReady(ctx, cmd, reportR, o.Tell)
	}
	return attend(ctx, cmd, reportR, o.Grace)
}

// Preflight finds out, before anything is fetched or made, whether this machine can run a lab.
func Preflight(ctx context.Context) error {
	f, err := MakeFolder("")
	if err != nil {
		return err
	}
	err = Start(ctx, f, StartOptions{Probe: true, Stderr: os.Stderr})
	return errors.Join(err, f.Remove())
}

// awaitReady returns when a detached lab is ready; if it can't be, it is gone afterwards.
func awaitReady(ctx context.Context, cmd *exec.Cmd, r *os.File, tell io.Writer) error {
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	rep, err := readReport(r, tell)
	if err == nil && rep.Ready && stop() {
		return cmd.Process.Release()
	}
	_ = cmd.Process.Kill()
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = rep.err()
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the lab's process ended before it was ready: %w", waitErr)
	}
	return err
}

// attend waits for a lab's end and hands interruptions to it.
func attend(ctx context.Context, cmd *exec.Cmd, r *os.File, grace time.Duration) error {
	if grace == 0 {
		grace = 30 * time.Second
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	// A second interruption, from a person who doesn't want to wait.
	again := make(chan os.Signal, 1)
	rep, repErr := make(chan report, 1), make(chan error, 1)
	go func() {
		v, err := readReport(r, nil)
		rep <- v
		repErr <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(again)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case err = <-done:
		case <-t.C:
			_ = cmd.Process.Kill()
			err = <-done
		case <-again:
			_ = cmd.Process.Kill()
			err = <-done
		}
	}
	v, readErr := <-rep, <-repErr
	if readErr == nil && v.err() != nil {
		return v.err()
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit):
		return &ExitError{Code: exitCode(exit)}
	}
	return err
}

func exitCode(e *exec.ExitError) int {
	if status, ok := e.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return e.ExitCode()
}

// readReport returns the last report; what was said before goes to tell, if that isn't nil.
func readReport(r io.Reader, tell io.Writer) (report, error) {
	reports := json.NewDecoder(r)
	for {
		var v report
		if err := reports.Decode(&v); err != nil {
			return v, err
		}
		if v.Say == "" {
			return v, nil
		}
		if tell != nil {
			_, _ = io.WriteString(tell, v.Say) // a terminal that has gone is no reason to end
		}
	}
}

func (r report) err() error {
	if r.Ready || r.Error == "" {
		return nil
	}
	err := errors.New(r.Error)
	if r.Errno != 0 {
		err = r.Errno
	}
	if r.Domain == "namespace" {
		return namespaceError(r.Op, err)
	}
	return fmt.Errorf("%s: %w", r.Op, err)
}

// closeOnExec keeps the numbered inherited files from every program that this one starts.
func closeOnExec(fds ...int) {
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
}
