package qmp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

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
