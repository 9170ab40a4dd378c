package daemon

import (
	"errors"
	"log/slog"
	"testing"

	"context"
)

// TestLookerUnasked: an arbiter that was not looked at is not said to be well.
func TestLookerUnasked(t *testing.T) {
	var err error
	l := newLooker(Arbiter{Name: "a witness", Look: func(context.Context) error { return err }}, "n1", slog.New(slog.DiscardHandler))
	if ok, text := l.last(); ok {
		t.Errorf("before the first look: %s", text)
	}
	l.look(t.Context())
	if ok, text := l.last(); !ok {
		t.Errorf("it answers: %s", text)
	}
	err = errors.New("gone")
	l.look(t.Context())
	if ok, text := l.last(); ok {
		t.Errorf("it is gone: %s", text)
	}
}
