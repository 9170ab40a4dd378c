package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/state"
)

// Errors of the API itself, on both of its sides.
var (
	// ErrBadRequest is returned for a request that says nothing the server understands.
	ErrBadRequest = errors.New("bad request")
	// ErrTooLarge is returned for a body over the limit.
	ErrTooLarge = errors.New("request too large")
	// ErrUnauthenticated is returned when the caller could not be identified.
	ErrUnauthenticated = errors.New("caller not identified")
	// ErrForbidden is returned when the caller's role does not allow what it asks for.
	ErrForbidden = errors.New("forbidden")
	// ErrNoRoute is returned for a path or method that the server doesn't have; it may be older than the client.
	ErrNoRoute = errors.New("no such endpoint")
	// ErrNoOperation is returned for an operation that this run of the daemon doesn't know.
	ErrNoOperation = errors.New("no such operation")
	// ErrNotCancellable is returned for an operation that can't be taken back, or has ended.
	ErrNotCancellable = errors.New("operation can't be cancelled")
	// ErrBusy is returned when too many requests or streams are open. Nothing was done.
	ErrBusy = errors.New("too many requests")
	// ErrTimeout is returned when the server gave up waiting. What was asked for may still be going on.
	ErrTimeout = errors.New("not finished in time")
	// ErrInternal is returned after a bug of the server's.
	ErrInternal = errors.New("internal error")
	// ErrUnconfirmed is returned when what needs a confirmation comes without it.
	ErrUnconfirmed = errors.New("not confirmed")
)

// Code names a kind of error on the wire. Codes are never reused with another meaning.
type Code string

// codeFailed is of errors that are in no table: the engine tried, and it did not work.
const codeFailed Code = "failed"

// Exit codes of a command line, by kind of error.
const (
	ExitError      = 1
	ExitUsage      = 2
	ExitNotRunning = 3 // not running or not protected
	ExitRefused    = 4 // by a precondition
	ExitTimeout    = 5 // still going on
	ExitNoArbiter  = 6 // arbiter or fencing unavailable
)

// sentinels are the errors that keep their identity across the wire. The first that an error wraps gives it its code, so what says more comes first.
var sentinels = []struct {
	code   Code
	err    error
	status int
	exit   int
	api    bool // of the API, not of the engine
}{
	{"bad_request", ErrBadRequest, http.StatusBadRequest, ExitUsage, true},
	{"too_large", ErrTooLarge, http.StatusRequestEntityTooLarge, ExitUsage, true},
	{"unauthenticated", ErrUnauthenticated, http.StatusUnauthorized, ExitRefused, true},
	{"forbidden", ErrForbidden, http.StatusForbidden, ExitRefused, true},
	{"no_route", ErrNoRoute, http.StatusNotFound, ExitError, true},
	{"no_operation", ErrNoOperation, http.StatusNotFound, ExitError, true},
	{"backup_runs", colo.ErrBackupRuns, http.StatusConflict, ExitRefused, false},
	{"backup_yields", colo.ErrBackupYields, http.StatusConflict, ExitError, false},
	{"verify_runs", colo.ErrVerifyRuns, http.StatusConflict, ExitRefused, false},
	{"too_far", colo.ErrTooFar, http.StatusConflict, ExitRefused, false},
	{"disk_offline", colo.ErrDiskOffline, http.StatusConflict, ExitRefused, false},
	{"disks_differ", colo.ErrDiffer, http.StatusConflict, ExitError, false},
	{"not_cancellable", ErrNotCancellable, http.StatusConflict, ExitRefused, true},
	{"busy", ErrBusy, http.StatusServiceUnavailable, ExitError, true},
	{"timeout", ErrTimeout, http.StatusGatewayTimeout, ExitTimeout, true},
	{"internal", ErrInternal, http.StatusInternalServerError, ExitError, true},
	{"unconfirmed", ErrUnconfirmed, http.StatusUnprocessableEntity, ExitUsage, true},

	{"closed", colo.ErrClosed, http.StatusServiceUnavailable, ExitError, false},
	{"no_vm", colo.ErrNoVM, http.StatusNotFound, ExitError, false},
	{"vm_exists", colo.ErrVMExists, http.StatusConflict, ExitRefused, false},
	{"not_candidate", colo.ErrNotCandidate, http.StatusConflict, ExitRefused, false},
	{"no_room", colo.ErrNoRoom, http.StatusConflict, ExitRefused, false},
	{"disk_full", colo.ErrDiskFull, http.StatusConflict, ExitRefused, false},
	{"mac_taken", colo.ErrMACTaken, http.StatusConflict, ExitRefused, false},
	{"image_taken", colo.ErrImageTaken, http.StatusConflict, ExitRefused, false},
	{"unknown_qemu", colo.ErrUnknownQEMU, http.StatusConflict, ExitRefused, false},
	{"disks_dont_shrink", colo.ErrShrink, http.StatusConflict, ExitRefused, false},
	{"spec_changed", colo.ErrSpecChanged, http.StatusPreconditionFailed, ExitRefused, false},
	{"vm_runs", colo.ErrNotWhileRunning, http.StatusConflict, ExitRefused, false},
	{"arbiter_unreachable", arbiter.ErrUnreachable, http.StatusServiceUnavailable, ExitNoArbiter, false},
	{"no_arbiter", colo.ErrNoArbiter, http.StatusConflict, ExitNoArbiter, false},
	{"not_protected", colo.ErrNotProtected, http.StatusConflict, ExitNotRunning, false},
	{"no_comparer", colo.ErrNoComparer, http.StatusConflict, ExitRefused, false},
	{"not_current", colo.ErrNotCurrent, http.StatusConflict, ExitRefused, false},
	{"no_peer", colo.ErrNoPeer, http.StatusConflict, ExitRefused, false},
	{"peer_protocol", colo.ErrPeerProtocol, http.StatusConflict, ExitRefused, true},
	{"peer_unreachable", colo.ErrPeerUnreachable, http.StatusServiceUnavailable, ExitRefused, false},
	{"generation_old", colo.ErrGenerationOld, http.StatusConflict, ExitRefused, false},
	{"nothing_to_go_on", colo.ErrNothingToGoOn, http.StatusConflict, ExitRefused, false},
	{"guest_off", colo.ErrGuestOff, http.StatusConflict, ExitRefused, false},
	{"arbiter_no_record", arbiter.ErrNoRecord, http.StatusConflict, ExitNoArbiter, false},
	{"arbiter_invalid", arbiter.ErrInvalid, http.StatusUnprocessableEntity, ExitError, false},
	{"arbiter_conflict", arbiter.ErrConflict, http.StatusConflict, ExitRefused, false},
	{"arbiter_has_record", colo.ErrHasRecord, http.StatusConflict, ExitRefused, false},
	{"other_arbiter", colo.ErrOtherArbiter, http.StatusConflict, ExitNoArbiter, false},
	{"file_missing", colo.ErrNoFile, http.StatusConflict, ExitRefused, false},
	{"image_missing", colo.ErrImageMissing, http.StatusConflict, ExitRefused, false},
	{"image_read_only_missing", blockrepl.ErrMediumMissing, http.StatusConflict, ExitRefused, false},
	{"image_exists", blockrepl.ErrExists, http.StatusConflict, ExitRefused, false},
	{"file_exists", fs.ErrExist, http.StatusConflict, ExitRefused, false},
	{"no_record_of_writes", blockrepl.ErrNoBitmap, http.StatusConflict, ExitRefused, false},
	{"backup_server_invalid", blockrepl.ErrBadServer, http.StatusUnprocessableEntity, ExitUsage, false},
	{"backup_server_missing", blockrepl.ErrNoServer, http.StatusConflict, ExitRefused, false},
	{"backup_export_missing", blockrepl.ErrNoExport, http.StatusConflict, ExitRefused, false},
	{"backup_export_small", blockrepl.ErrExportSize, http.StatusConflict, ExitRefused, false},
	{"backup_export_read_only", blockrepl.ErrExportReadOnly, http.StatusConflict, ExitRefused, false},
	{"backup_export_unsafe", blockrepl.ErrExportUnsafe, http.StatusConflict, ExitRefused, false},
	{"backup_server_silent", blockrepl.ErrServerSilent, http.StatusConflict, ExitError, false},
	{"backup_scratch_full", blockrepl.ErrScratchFull, http.StatusConflict, ExitRefused, false},
	{"invalid_disk", blockrepl.ErrInvalidDisk, http.StatusUnprocessableEntity, ExitUsage, false},
	{"image_in_use", blockrepl.ErrInUse, http.StatusConflict, ExitRefused, false},
	{"image_read_only", blockrepl.ErrReadOnly, http.StatusConflict, ExitRefused, false},
	{"image_wrong_format", blockrepl.ErrWrongFormat, http.StatusConflict, ExitRefused, false},
	{"image_wrong_size", blockrepl.ErrWrongSize, http.StatusConflict, ExitRefused, false},
	{"image_backing_chain", blockrepl.ErrBackingChain, http.StatusConflict, ExitRefused, false},
	{"image_not_regular", blockrepl.ErrNotRegular, http.StatusConflict, ExitRefused, false},
	{"no_bridge", netcompare.ErrNoBridge, http.StatusConflict, ExitRefused, false},
	{"network_not_permitted", netcompare.ErrNotPermitted, http.StatusConflict, ExitRefused, false},
	{"no_ports", state.ErrNoPorts, http.StatusConflict, ExitRefused, false},
	{"state_full", state.ErrFull, http.StatusInsufficientStorage, ExitError, false},
}

// ErrorBody is an error on the wire.
type ErrorBody struct {
	Code    Code        `json:"code"`
	Also    []Code      `json:"also,omitempty"` // further kinds that the error is of
	Message string      `json:"message"`
	Node    string      `json:"node,omitempty"`
	VM      string      `json:"vm,omitempty"`
	Exit    int         `json:"exit"`   // exit code for a command line
	Engine  bool        `json:"engine"` // the engine's word; otherwise the request did not get that far
	Refused *Refusal    `json:"refused,omitempty"`
	Fields  []FieldBody `json:"fields,omitempty"` // wrong fields of a spec or of the request
	Differs *Difference `json:"differs,omitempty"`
}

// Refusal says in which state what was not possible.
type Refusal struct {
	State colo.State     `json:"state"`
	Event colo.EventKind `json:"event"`
}

// FieldBody is one wrong field.
type FieldBody struct {
	File    string `json:"file,omitempty"`
	Field   string `json:"field"`
	Message string `json:"message"`
	Line    int    `json:"line,omitempty"`
	Col     int    `json:"col,omitempty"`
}

// Difference says why two nodes don't fit.
type Difference struct {
	What  string `json:"what"`
	Here  string `json:"here"`
	There string `json:"there"`
}

// describe makes an error's form for the wire, and its HTTP status.
func describe(err error, node, vm string) (body ErrorBody, status int) {
	body = ErrorBody{Code: codeFailed, Message: err.Error(), Node: node, VM: vm, Exit: ExitError, Engine: true}
	status = http.StatusInternalServerError
	first := true
	for _, k := range sentinels {
		switch {
		case !errors.Is(err, k.err):
		case first:
			body.Code, body.Exit, body.Engine, status, first = k.code, k.exit, !k.api, k.status, false
		default:
			body.Also = append(body.Also, k.code)
		}
	}
	var refused *colo.UnexpectedEventError
	var invalid *colo.InvalidSpecError
	var differs *colo.PeerMismatchError
	var unfit *colo.UnfitError
	var remote *Error
	switch {
	case errors.As(err, &refused):
		body.Refused = &Refusal{refused.State, refused.Event}
		if first {
			body.Code, body.Exit, status = "refused", ExitRefused, http.StatusConflict
			if notRunning(refused) {
				body.Exit = ExitNotRunning
			}
		}
	case errors.As(err, &invalid):
		body.Fields = invalidFields(err)
		if first {
			body.Code, body.Exit, status = "invalid_spec", ExitUsage, http.StatusUnprocessableEntity
		}
	case errors.As(err, &differs):
		body.Differs = &Difference{differs.What, differs.Here, differs.There}
		if first {
			body.Code, body.Exit, status = "peer_mismatch", ExitRefused, http.StatusConflict
		}
	case errors.As(err, &unfit):
		if first {
			body.Code, body.Exit, status = "qemu_unfit", ExitRefused, http.StatusConflict
		}
	case errors.As(err, &remote) && first:
		body.Code, body.Exit = remote.Body.Code, remote.Body.Exit
	}
	var field *fieldError
	if errors.As(err, &field) {
		body.Fields = append(body.Fields, FieldBody{Field: field.field, Message: field.msg, Line: field.line, Col: field.col})
	}
	return body, status
}

// notRunning says whether all that is missing for a request is that the VM runs, or is protected.
func notRunning(e *colo.UnexpectedEventError) bool {
	switch e.State {
	case colo.Stopped, colo.Outdated:
		return true
	case colo.Solo:
		return e.Event == colo.ReqSwitchover
	}
	return false
}

// invalidFields collects all wrong fields of a joined error.
func invalidFields(err error) []FieldBody {
	var out []FieldBody
	switch e := err.(type) { //nolint:errorlint // a joined error is taken apart, not searched
	case *colo.InvalidSpecError:
		return []FieldBody{{File: e.File, Field: e.Field, Message: e.Msg, Line: e.Line, Col: e.Col}}
	case interface{ Unwrap() []error }:
		for _, each := range e.Unwrap() {
			out = append(out, invalidFields(each)...)
		}
	case interface{ Unwrap() error }:
		return invalidFields(e.Unwrap())
	}
	return out
}

// Error is what a server answered instead of a result.
type Error struct {
	Status int // of HTTP; 0 for the error of an operation
	Body   ErrorBody
	header http.Header
}

func (e *Error) Error() string { return e.Body.Message }

// Unwrap gives the errors that the server's one wrapped: those of the table, and the typed ones.
func (e *Error) Unwrap() []error {
	var out []error
	b := &e.Body
	for _, k := range sentinels {
		if k.code == b.Code {
			out = append(out, k.err)
		}
		for _, also := range b.Also {
			if k.code == also {
				out = append(out, k.err)
			}
		}
	}
	if b.Refused != nil {
		out = append(out, &colo.UnexpectedEventError{VM: b.VM, State: b.Refused.State, Event: b.Refused.Event})
	}
	if b.Code == "invalid_spec" {
		for _, f := range b.Fields {
			out = append(out, &colo.InvalidSpecError{File: f.File, Field: f.Field, Msg: f.Message, Line: f.Line, Col: f.Col})
		}
	}
	if d := b.Differs; d != nil {
		out = append(out, &colo.PeerMismatchError{What: d.What, Here: d.Here, There: d.There})
	}
	return out
}

// apiError is one of the API's sentinels with a message of its own.
type apiError struct {
	kind error
	msg  string
}

func apiErrorf(kind error, format string, args ...any) error {
	return &apiError{kind, fmt.Sprintf(format, args...)}
}

func (e *apiError) Error() string { return e.kind.Error() + ": " + e.msg }
func (e *apiError) Unwrap() error { return e.kind }
