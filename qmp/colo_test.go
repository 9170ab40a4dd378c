package qmp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

// The choice between x-colo alone and with return-path is made by trial.
func TestSetColoCapabilities(t *testing.T) {
	for _, c := range []struct {
		name, alone, both string // what QEMU says
		calls             int
		ok                bool
	}{
		{"QEMU 10", "", "", 1, true},
		{"QEMU 11", "Capability 'x-colo' requires capability 'return-path'", "", 2, true},
		{"refused twice", "Capability 'x-colo' requires capability 'return-path'", "no", 2, false},
		{"without COLO", "Parameter 'capability' does not accept value 'x-colo'", "", 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := qmptest.New(t)
			f.Handle("migrate-set-capabilities", func(args json.RawMessage) (any, error) {
				answer := c.alone
				if strings.Contains(string(args), "return-path") {
					answer = c.both
				}
				if answer != "" {
					return nil, errors.New(answer)
				}
				return nil, nil
			})
			err := qmp.SetColoCapabilities(t.Context(), f.Client(t.Context()))
			var un *qmp.UnsupportedError
			var qe *qmp.Error
			switch {
			case c.ok && err != nil:
				t.Error(err)
			case !c.ok && (!errors.As(err, &un) || !errors.As(err, &qe) || !errors.Is(err, qmp.ErrNotSupported)):
				t.Errorf("got %v", err)
			}
			if calls := f.Calls(); len(calls) != c.calls {
				t.Error(fmt.Sprint(calls))
			}
		})
	}
}

// A QEMU that doesn't know the newer of two ways is given the older one.
func TestOlderQEMUs(t *testing.T) {
	f := qmptest.New(t)
	f.Handle("chardev-add", func(args json.RawMessage) (any, error) {
		if strings.Contains(string(args), "reconnect-ms") {
			return nil, errors.New("Parameter 'backend.data.reconnect-ms' is unexpected") // 7.2's words
		}
		return nil, nil
	})
	old := func(args json.RawMessage) (any, error) {
		if !strings.Contains(string(args), `"uri"`) {
			return nil, errors.New("Parameter 'uri' is missing")
		}
		return nil, nil
	}
	f.Handle("migrate", old)
	f.Handle("migrate-incoming", old)
	c, ctx := f.Client(t.Context()), t.Context()
	for _, err := range []error{
		c.ChardevAddSocket(ctx, "cm", qmp.ChardevSocket{Unix: "/s", ReconnectMS: 1001}),
		c.Migrate(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: "10.0.0.1", Port: 9}}),
		c.Migrate(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: "fd00::1", Port: 9, MPTCP: true}}),
		c.MigrateIncoming(ctx, qmp.Channel{Unix: "/m"}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	var second []string // of each pair of calls
	for i, call := range f.Calls() {
		if i%2 == 1 {
			second = append(second, call.String())
		}
	}
	want := []string{
		`chardev-add {"backend":{"data":{"addr":{"type":"unix","data":{"path":"/s"}},"server":false,"reconnect":2},"type":"socket"},"id":"cm"}`,
		`migrate {"uri":"tcp:10.0.0.1:9"}`, `migrate {"uri":"tcp:[fd00::1]:9,mptcp=on"}`, `migrate-incoming {"uri":"unix:/m"}`,
	}
	if d := cmp.Diff(want, second); d != "" {
		t.Error(d)
	}
	// Any other refusal is not tried again.
	f.Handle("migrate", func(json.RawMessage) (any, error) { return nil, errors.New("There's a migration process in progress") })
	before := len(f.Calls())
	if err := c.Migrate(ctx, qmp.Channel{Unix: "/m"}); err == nil || len(f.Calls()) != before+1 {
		t.Errorf("%v after %d calls", err, len(f.Calls())-before)
	}
}
