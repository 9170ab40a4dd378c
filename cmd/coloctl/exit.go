package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/libvirt"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/setup"
)

// Exit codes.
const (
	exitOK           = 0
	exitError        = 1
	exitUsage        = 2
	exitNotRunning   = 3 // not running or not protected
	exitRefused      = 4 // by a precondition
	exitTimeout      = 5 // still going on when --timeout was over
	exitNoArbiter    = 6 // arbiter or fencing unavailable
	exitInterrupted  = 130
	exitShellMissing = 127 // what a shell says of a command that isn't there
)

// usageError is for what was typed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errTimeout is the cause of a context that --timeout ended.
var errTimeout = errors.New("still going on at the timeout")

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var usage *usageError
	var exit *lab.ExitError
	var answer *api.Error
	var invalid *colo.InvalidSpecError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.Code
	case errors.Is(err, lab.ErrInterrupted):
		return exitInterrupted
	case errors.As(err, &usage), errors.As(err, &invalid), errors.Is(err, lab.ErrName), errors.Is(err, lab.ErrArbiter), errors.Is(err, lab.ErrLauncher), errors.Is(err, lab.ErrUnknownScenario):
		return exitUsage
	case errors.Is(err, errDeclined), errors.Is(err, errUnsafe), errors.Is(err, errUnwell), errors.Is(err, errExists), errors.Is(err, errCannotProtect),
		errors.Is(err, libvirt.ErrRunning), errors.Is(err, libvirt.ErrTransient), errors.Is(err, libvirt.ErrNoDomain):
		return exitRefused
	case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, api.ErrUnreachable): // a host that is off is no timeout of ours
		return exitTimeout
	case errors.As(err, &answer) && answer.Body.Exit != exitOK: // the server knows best what kind its error is of
		return answer.Body.Exit
	case errors.Is(err, lab.ErrNoLab), errors.Is(err, lab.ErrStarting), errors.Is(err, errNotProtected):
		return exitNotRunning
	case refused(err):
		return exitRefused
	case errors.Is(err, arbiter.ErrUnreachable):
		return exitNoArbiter
	}
	return exitError
}

// refused tells whether a person has to remedy something first.
func refused(err error) bool {
	for _, target := range []error{lab.ErrPrecondition, lab.ErrExists, colo.ErrVMExists, pki.ErrExists, pki.ErrNoAuthority, pki.ErrRotating, pki.ErrLooseMode,
		setup.ErrOther, setup.ErrUnfit, setup.ErrBundle, fs.ErrExist, colo.ErrImageMissing} {
		if errors.Is(err, target) {
			return true
		}
	}
	return errors.As(err, new(*colo.UnfitError)) || errors.As(err, new(*both.ElsewhereError)) || errors.As(err, new(*both.AmbiguousError))
}
