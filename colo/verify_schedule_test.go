package colo

import (
	"testing"
	"time"

	"github.com/coloctl/coloctl/state"
)

func TestVerifyDue(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	for name, c := range map[string]struct {
		last  *state.Verify
		since time.Duration // protected for
		want  bool
	}{
		"never, and protected for an hour":    {nil, time.Hour, false},
		"never, and protected for two days":   {nil, 2 * day, true},
		"a week ago":                          {&state.Verify{Ended: now.Add(-7 * day)}, 8 * day, false},
		"two months ago":                      {&state.Verify{Ended: now.Add(-60 * day)}, 8 * day, true},
		"two months ago, just protected anew": {&state.Verify{Ended: now.Add(-60 * day)}, time.Minute, false},
	} {
		if got := verifyDue(c.last, now.Add(-c.since), now, 30*day); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
