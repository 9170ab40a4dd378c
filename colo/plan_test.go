package colo

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

type recorder struct{ got []string }

func (r *recorder) stepStarted(int)                     {}
func (r *recorder) stepEnded(int, time.Duration, error) {}
func (r *recorder) step(name string, err error) Step {
	return Step{
		Name: name,
		Do:   func(context.Context) error { r.got = append(r.got, name); return err },
		Undo: func(ctx context.Context) error { r.got = append(r.got, "-"+name); return ctx.Err() },
	}
}

func TestPlanRun(t *testing.T) {
	boom := errors.New("boom")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(&interruptedError{"peer lost"})
	closed, cancel2 := context.WithCancelCause(t.Context())
	cancel2(ErrClosed)
	for _, c := range []struct {
		name     string
		ctx      context.Context
		fail     int
		noReturn int
		want     []string
		err      string
	}{
		{"all", t.Context(), -1, 0, []string{"a", "b", "c"}, ""},
		{"undone in reverse, the failed one too", t.Context(), 1, 0, []string{"a", "b", "-b", "-a"}, "protect: b: boom"},
		{"no return", t.Context(), 2, 2, []string{"a", "b", "c"}, "protect: c: boom"},
		{"before no return", t.Context(), 1, 2, []string{"a", "b", "-b", "-a"}, "protect: b: boom"},
		{"cancelled before its first step", cancelled, -1, 0, nil, "protect: a: interrupted: peer lost"},
		{"closing leaves things as they are", closed, -1, 0, nil, "protect: a: node is closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &recorder{}
			p := &Plan{Kind: planProtect, NoReturn: c.noReturn}
			for i, n := range []string{"a", "b", "c"} {
				var err error
				if i == c.fail {
					err = boom
				}
				p.Steps = append(p.Steps, r.step(n, err))
			}
			err := p.run(c.ctx, r)
			if !slices.Equal(r.got, c.want) {
				t.Errorf("steps %v, want %v", r.got, c.want)
			}
			if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("error %v, want %s", err, c.err)
			}
			var se *StepError
			if err != nil && (!errors.As(err, &se) || se.Undo != nil) {
				t.Errorf("%#v", err)
			}
		})
	}
}

// TestPlanCancelledBetweenSteps: what was not begun counts neither as done nor as past the point of no return.
func TestPlanCancelledBetweenSteps(t *testing.T) {
	for noReturn, want := range map[int][]string{
		0: {"a", "b", "-b", "-a"}, // everything can be undone
		1: {"a", "b"},
		2: {"a", "b", "-b", "-a"}, // c is the first that can't, and was not begun
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &recorder{}
		p := &Plan{Kind: planProtect, NoReturn: noReturn, Steps: []Step{r.step("a", nil), r.step("b", nil), r.step("c", nil)}}
		do := p.Steps[1].Do
		p.Steps[1].Do = func(ctx context.Context) error { cancel(&interruptedError{"peer lost"}); return do(ctx) }
		if err := p.run(ctx, r); err == nil || err.Error() != "protect: c: interrupted: peer lost" || !slices.Equal(r.got, want) {
			t.Errorf("no return from %d: %v, %v; want %v", noReturn, r.got, err, want)
		}
	}
}
