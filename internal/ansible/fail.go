package ansible

import (
	"errors"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/both"
)

// exitInterrupted is coloctl's exit code for a run that was ended by a signal.
const exitInterrupted = 130

// fail makes the reply that of a task that failed: what was tried, where, what came back and what to do next.
func (r *Reply) fail(t *Task, err error) {
	r.Failed, r.RC, r.Msg = true, exitCode(err), sentence(t, err)
	if next := advice(err); next != "" && !strings.Contains(r.Msg, next) {
		r.Msg += "; next: " + next
	}
	if u := (*stoppedError)(nil); errors.As(err, &u) && r.Changed {
		r.Msg += "; what was done until then stays"
	}
}

// sentence is an error in one line.
func sentence(t *Task, err error) string {
	if t.NoLog && errors.Is(err, ErrParameters) {
		return ErrParameters.Error() + ": " + strings.Join(wrongNames(err), ", ") + " (why is hidden by no_log)"
	}
	var elsewhere *both.ElsewhereError
	text := err.Error()
	if errors.As(err, &elsewhere) {
		text = strings.Replace(text, elsewhere.Error(), elsewhere.VM+" runs on "+elsewhere.Node+", which this task does not reach", 1)
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; ")
	if errors.Is(err, ErrParameters) {
		text = ErrParameters.Error() + ": " + strings.TrimPrefix(text, ErrParameters.Error()+": ")
	}
	return text
}

// wrongNames are the parameters that an error is about.
func wrongNames(err error) []string {
	var out []string
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) { //nolint:errorlint // a joined error is taken apart, not searched
		case *paramError:
			out = append(out, e.param)
		case *specError:
			out = append(out, "spec")
		case interface{ Unwrap() []error }:
			for _, each := range e.Unwrap() {
				walk(each)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	slices.Sort(out)
	return slices.Compact(out)
}

// advice is what to do next.
func advice(err error) string {
	var stopped *stoppedError
	switch {
	case errors.As(err, &stopped):
		return stopped.next
	case errors.Is(err, ErrParameters):
		return "see: ansible-doc coloctl.coloctl.colo_vm"
	case errors.As(err, new(*both.ElsewhereError)):
		return "give the task to that host, or name both nodes (nodes, identity, trust)"
	case errors.As(err, new(*both.AmbiguousError)):
		return "see: coloctl status"
	}
	return both.Advice(err)
}

// exitCode is the one that coloctl would exit with.
func exitCode(err error) int {
	var e *api.Error
	switch {
	case errors.Is(err, errTimeout):
		return api.ExitTimeout
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, ErrParameters):
		return api.ExitUsage
	case errors.As(err, &e) && e.Body.Exit != 0:
		return e.Body.Exit
	case errors.Is(err, arbiter.ErrUnreachable):
		return api.ExitNoArbiter
	case errors.Is(err, api.ErrUnreachable):
		return api.ExitError
	}
	return api.ExitRefused // decided here, from what was seen
}
