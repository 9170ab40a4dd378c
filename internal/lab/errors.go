package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// These errors say why a lab can't be started or used. All of them are returned before anything was left behind.
var (
	// ErrPrecondition is wrapped by every error that a person must remedy on this machine first.
	ErrPrecondition = errors.New("this machine can't run the lab")
	// ErrNoNamespaces is returned when the kernel refuses the lab its own namespaces.
	ErrNoNamespaces = errors.New("namespaces are not permitted")
	// ErrNoTun is returned when /dev/net/tun can't be used.
	ErrNoTun = errors.New("/dev/net/tun can't be used")
	// ErrNoLab is returned when no lab of the name is up.
	ErrNoLab = errors.New("no such lab is up")
	// ErrStarting is returned when a lab is asked for something before it is up.
	ErrStarting = errors.New("is still starting")
	// ErrExists is returned when a lab of the name is up already.
	ErrExists = errors.New("a lab of this name is up already")
	// ErrName is returned for a lab's name that can't be used.
	ErrName = errors.New("a lab's name is 1 to 32 of a-z, 0-9 and -, beginning with a letter")
	// ErrUnknownScenario is returned when no scenario has the name.
	ErrUnknownScenario = errors.New("unknown scenario")
	// ErrArbiter is returned for a kind of arbiter that a lab can't have.
	ErrArbiter = errors.New("unknown kind of arbiter")
	// ErrLauncher is returned for what can't start QEMU in a lab.
	ErrLauncher = errors.New("unknown launcher")
	// ErrInterrupted is the cause of a context that ended because a person asked for it.
	ErrInterrupted = errors.New("interrupted")
)

// PreconditionError is what a person can do something about. It wraps [ErrPrecondition] and the sentinel in Err.
type PreconditionError struct {
	Op     string // what was tried
	Err    error
	Remedy string // what to do, a whole sentence
}

func (e *PreconditionError) Error() string { return fmt.Sprintf("%s: %v. %s", e.Op, e.Err, e.Remedy) }

// Unwrap makes errors.Is find the cause and ErrPrecondition.
func (e *PreconditionError) Unwrap() []error { return []error{e.Err, ErrPrecondition} }

// ExitError is how a lab's process ended; what happened was already printed by it.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("the lab ended with exit code %d", e.Code) }

// sysctls that decide whether namespaces may be made, and the value that forbids it.
var namespaceSysctls = []struct {
	path, name, forbids, remedy string
}{
	{"/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", "0", "1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
	{"/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", "0", "10000"},
	{"/proc/sys/user/max_net_namespaces", "user.max_net_namespaces", "0", "10000"},
	{"/proc/sys/user/max_pid_namespaces", "user.max_pid_namespaces", "0", "10000"},
	{"/proc/sys/user/max_mnt_namespaces", "user.max_mnt_namespaces", "0", "10000"},
}

// namespaceError explains why op on the lab's namespaces was refused.
func namespaceError(op string, err error) error {
	refused := errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS) || errors.Is(err, syscall.EINVAL)
	if !refused {
		return fmt.Errorf("%s: %w", op, err)
	}
	var settings []string
	for _, s := range namespaceSysctls {
		value, readErr := os.ReadFile(s.path)
		if readErr == nil && strings.TrimSpace(string(value)) == s.forbids {
			settings = append(settings, fmt.Sprintf("%s=%s", s.name, s.remedy))
		}
	}
	remedy := "Run it as root."
	switch {
	case len(settings) > 0:
		remedy = fmt.Sprintf("Run as root: sysctl -w %s. Or run the lab as root.", strings.Join(settings, " "))
	case os.Geteuid() == 0:
		remedy = "In a container, give it CAP_SYS_ADMIN and an unmasked /proc (docker: --privileged)."
	case errors.Is(err, syscall.EINVAL):
		remedy = "The kernel needs CONFIG_USER_NS, CONFIG_PID_NS and CONFIG_NET_NS. Or run the lab as root."
	}
	return &PreconditionError{Op: op, Err: fmt.Errorf("%w: %w", ErrNoNamespaces, err), Remedy: remedy}
}

// checkTun opens the device that makes taps, as QEMU will.
func checkTun() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		return f.Close()
	}
	remedy := "Run as root: chmod 0666 /dev/net/tun (what most distributions have). Or run the lab as root."
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy = "Run as root: modprobe tun. In a container, pass the device in (docker: --device /dev/net/tun)."
	case errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO):
		remedy = "Run as root: modprobe tun. Where that fails, the kernel lacks CONFIG_TUN."
	}
	return &PreconditionError{Op: "open /dev/net/tun", Err: fmt.Errorf("%w: %w", ErrNoTun, err), Remedy: remedy}
}
