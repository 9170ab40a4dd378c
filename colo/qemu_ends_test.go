package colo

import (
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

// TestToldToEnd: a QEMU that was told to end by a signal counts as dead with the first answer that comes after its word, though nobody has read that
// yet, and what it says of COLO afterwards is no loss of the peer. One whose guest has switched itself off before stays a good copy.
func TestToldToEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []map[string]any
		want   error
		lost   bool
	}{
		{"nothing", nil, nil, true},
		{"a signal", []map[string]any{{"guest": false, "reason": "host-signal"}}, errDying, false},
		{"quit", []map[string]any{{"guest": false, "reason": "host-qmp-quit"}}, errDying, false},
		{"the guest, then a signal", []map[string]any{{"guest": true, "reason": "guest-shutdown"}, {"guest": false, "reason": "host-signal"}}, nil, false},
		{"a reset", []map[string]any{{"guest": true, "reason": "guest-reset"}}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := qmptest.New(t)
			f.Handle("query-yank", func(json.RawMessage) (any, error) {
				for _, d := range c.events { // QEMU writes them before it answers
					f.Emit("SHUTDOWN", d)
				}
				return []any{}, nil
			})
			q := &qemuCopy{rescue: f.Client(t.Context()), events: make(chan CopyEvent, 4), log: slog.New(slog.NewTextHandler(t.Output(), nil)), proc: &process{done: make(chan struct{})}}
			q.ends = q.rescue.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("SHUTDOWN")})
			if err := q.Alive(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("alive: %v, want %v", err, c.want)
			}
			q.lost("QEMU has left COLO by an error")
			if got := len(q.events) == 1; got != c.lost {
				t.Errorf("the peer's loss was told: %v", got)
			}
		})
	}
}
