package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	stageInit   = "init"
	stageWorker = "worker"
	envDetached = "COLOCTL_LAB_DETACHED"
	envProbe    = "COLOCTL_LAB_PROBE"

	// Root is where the lab's folder is seen inside. A unix socket's path has at most 107 bytes, and home folders can be long.
	Root = "/run/lab"
)

// Inside tells whether this process is a lab's worker.
func Inside() bool { return os.Getenv(envStage) == stageWorker }

// FolderOutside returns the path of the lab's folder as a person knows it.
func FolderOutside() string { return os.Getenv(envFolder) }

// Main must be the first call of a program that uses [Start]: in a lab's pid 1 it does that process's work and doesn't return.
func Main() {
	switch os.Getenv(envStage) {
	case stageInit:
		os.Exit(runInit())
	case stageWorker:
		closeOnExec(fdReport, fdLock)
	}
}

// reports is the worker's end of the pipe to the starter of a detached lab.
var reports = sync.OnceValue(func() *os.File { return os.NewFile(fdReport, "report") })

// Starter takes lines that the starter of a detached lab tells its user. It is for the worker, until Ready or Unready.
var Starter io.Writer = starter{}

type starter struct{}

func (starter) Write(line []byte) (int, error) {
	return len(line), json.NewEncoder(reports()).Encode(report{Say: string(line)})
}

// Ready tells the starter of a detached lab that it is up. Only the worker may call it, once.
func Ready() error {
	f := reports()
	return errors.Join(json.NewEncoder(f).Encode(report{Ready: true}), f.Close())
}

// Unready tells the starter of a detached lab why it isn't up.
func Unready(reason error) error {
	f := reports()
	return errors.Join(json.NewEncoder(f).Encode(report{Op: "set the lab up", Error: reason.Error()}), f.Close())
}

// Detached tells whether this lab outlives its starter.
func Detached() bool { return os.Getenv(envDetached) != "" }

// runInit is pid 1. It returns the exit code of the worker.
func runInit() int {
	closeOnExec(fdReport, fdLifeline, fdLock)
	out := os.NewFile(fdReport, "report")
	if os.Getpid() != 1 {
		fmt.Fprintf(os.Stderr, "%s is set: this is for the lab's own use\n", envStage)
		return 2
	}
	if !Detached() {
		go func() {
			_, _ = os.NewFile(fdLifeline, "lifeline").Read(make([]byte, 1)) // any end of it is the end
			os.Exit(1)                                                      // and of everything in this pid namespace
		}()
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	if err := prepare(); err != nil {
		_ = json.NewEncoder(out).Encode(err)
		return 1
	}
	if os.Getenv(envProbe) != "" {
		return 0
	}
	worker, err := startWorker(out)
	if err != nil {
		_ = json.NewEncoder(out).Encode(report{Op: "start the lab's worker", Error: err.Error()})
		return 1
	}
	_ = out.Close() // the worker has it now, if it is to report at all
	go func() {
		for s := range signals {
			_ = syscall.Kill(worker, s.(syscall.Signal)) // it may just have ended
		}
	}()
	return reap(worker)
}

// reap waits for every orphan of the lab until the worker ends. The worker itself isn't pid 1 so that what it starts with os/exec is its
// own to wait for.
func reap(worker int) int {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1 // no children: can't be while the worker isn't reaped
		case pid == worker && status.Signaled():
			return 128 + int(status.Signal())
		case pid == worker && status.Exited():
			return status.ExitStatus()
		}
	}
}

func startWorker(out *os.File) (int, error) {
	if err := os.Setenv(envStage, stageWorker); err != nil {
		return 0, err
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, out, nil, os.NewFile(fdLock, "lock")}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: files})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	// reap waits for it by number.
	return pid, p.Release()
}

// A setupStep is something that the namespaces need before the worker may run.
type setupStep struct {
	name string
	do   func() error
}

// prepare returns nil or why the lab's surroundings can't be made.
func prepare() *report {
	steps := []setupStep{
		{"keep mounts from spreading", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount /run", mountRun},
		{"mount /proc", func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
		{"bring lo up", func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			r := &report{Op: s.name, Error: err.Error(), Domain: "namespace"}
			_ = errors.As(err, &r.Errno)
			return r
		}
	}
	return nil
}

// mountRun gives the lab a /run of its own with its folder in it.
func mountRun() error {
	// Opened before /run is covered, since it may lie below; and in here, since a mount can't be bound from another mount namespace.
	folder, err := unix.Open(FolderOutside(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", FolderOutside(), err)
	}
	defer func() { _ = unix.Close(folder) }() // nothing was written through it
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := os.Mkdir(Root, 0o755); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", folder), Root, "", unix.MS_BIND|unix.MS_REC, "")
}

// Path returns a path below the lab's folder, inside.
func Path(elem ...string) string { return filepath.Join(append([]string{Root}, elem...)...) }
