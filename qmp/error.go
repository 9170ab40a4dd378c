package qmp

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// These errors are returned when a command did not get an answer.
var (
	// ErrClosed is matched by every error that is due to the end of the
	// connection, by either side. The error is an *EndError.
	ErrClosed = errors.New("qmp: connection ended")

	// ErrTimeout is matched when the deadline of a context or of the
	// handshake passed before QEMU's reply came. The error is a *WaitError.
	ErrTimeout = errors.New("qmp: no reply in time")

	// ErrBusy is returned at once, without anything having been sent, when
	// too many commands are waiting for QEMU already.
	ErrBusy = errors.New("qmp: too many commands wait for a reply")
)

// ErrNotSupported is matched by every *UnsupportedError.
var ErrNotSupported = errors.New("qmp: not supported by this QEMU")

// Classes of errors that QEMU distinguishes. All others are ClassGeneric.
const (
	ClassGeneric          = "GenericError"
	ClassCommandNotFound  = "CommandNotFound"
	ClassDeviceNotActive  = "DeviceNotActive"
	ClassDeviceNotFound   = "DeviceNotFound"
	ClassKVMMissingCap    = "KVMMissingCap"
	ClassDeviceIsReadOnly = "DeviceIsReadOnly"
)

// Error is QEMU's refusal of a command.
type Error struct {
	Class   string // one of the Class constants
	Desc    string // QEMU's words; not stable between versions
	Command string // the refused command
}

func (e *Error) Error() string {
	if e.Class == ClassGeneric {
		return fmt.Sprintf("qmp: %s: %s", e.Command, e.Desc)
	}
	return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// Is makes a CommandNotFound match ErrNotSupported.
func (e *Error) Is(target error) bool {
	return target == ErrNotSupported && e.Class == ClassCommandNotFound
}

// IsClass tells whether err is or wraps QEMU's refusal with this class.
func IsClass(err error, class string) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == class
}

// names tells whether err is QEMU's refusal and its words have text in them:
// that is how a QEMU says which of several ways it doesn't know.
func names(err error, text string) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.Desc, text)
}

// WaitError says that the caller's context ended before the reply came. It
// matches ErrTimeout when the reason was a deadline, and the context's error.
type WaitError struct {
	Command string // empty if an event was waited for
	// Sent is false if the command never left the client's queue: then it
	// is certain that QEMU doesn't carry it out. If true, it may have been,
	// or be later.
	Sent  bool
	Cause error
}

func (e *WaitError) Error() string {
	switch {
	case e.Command == "":
		return fmt.Sprintf("qmp: no such event: %v", e.Cause)
	case !e.Sent:
		return fmt.Sprintf("qmp: %s: not sent: %v", e.Command, e.Cause)
	}
	return fmt.Sprintf("qmp: %s: no reply yet: %v", e.Command, e.Cause)
}

func (e *WaitError) Unwrap() error { return e.Cause }

// Is makes a passed deadline match ErrTimeout.
func (e *WaitError) Is(target error) bool {
	return target == ErrTimeout && errors.Is(e.Cause, context.DeadlineExceeded)
}

// EndError is why a connection ended: io.EOF when QEMU closed it or died,
// net.ErrClosed when Close was called, a *ProtocolError, or what the socket
// said. It matches ErrClosed.
type EndError struct {
	Name    string // Options.Name
	Command string // the command that got no answer because of it, or empty
	Cause   error
}

func (e *EndError) Error() string {
	s := "qmp"
	if e.Name != "" {
		s += " " + e.Name
	}
	if e.Command != "" {
		s += ": " + e.Command
	}
	return fmt.Sprintf("%s: connection ended: %v", s, e.Cause)
}

func (e *EndError) Unwrap() error { return e.Cause }

// Is makes every end of a connection match ErrClosed.
func (e *EndError) Is(target error) bool { return target == ErrClosed }

// ProtocolError says that the peer sent what isn't QMP. The connection can't be
// used any longer.
type ProtocolError struct {
	Reason string
	Line   string // the beginning of the offending line
}

func (e *ProtocolError) Error() string {
	if e.Line == "" {
		return "not QMP: " + e.Reason
	}
	return fmt.Sprintf("not QMP: %s: %q", e.Reason, e.Line)
}

// LineTooLongError says that QEMU sent a longer line than Options.MaxLine.
type LineTooLongError struct {
	Limit int // bytes
}

func (e *LineTooLongError) Error() string {
	return fmt.Sprintf("line longer than %d bytes", e.Limit)
}

// UnsupportedError names what this QEMU lacks. It matches ErrNotSupported.
type UnsupportedError struct {
	Feature string
	MinQEMU string // first version known to have it; empty if unknown
	QEMU    string // this QEMU's version; empty if unknown
	Cause   error  // QEMU's own words, if it was found out by trial
}

func (e *UnsupportedError) Error() string {
	s := "qmp: this QEMU"
	if e.QEMU != "" {
		s += " (" + e.QEMU + ")"
	}
	s += " lacks " + e.Feature
	if e.MinQEMU != "" {
		s += ", needs at least " + e.MinQEMU
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

func (e *UnsupportedError) Unwrap() error { return e.Cause }

// Is makes every UnsupportedError match ErrNotSupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrNotSupported }
