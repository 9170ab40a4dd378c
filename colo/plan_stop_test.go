package colo

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// TestNotShutDown: a guest that takes too long is told in words of its own; that QEMU itself doesn't answer, or has gone, is worth a word.
func TestNotShutDown(t *testing.T) {
	const good = "the guest did not shut down within 1s: stop it by force, or shut it down from inside"
	for _, c := range []struct {
		err  error
		says string
		all  bool
	}{
		{&qmp.WaitError{Cause: context.DeadlineExceeded}, good, true},
		{context.DeadlineExceeded, good, true},
		{&qmp.WaitError{Command: "query-status", Sent: true, Cause: context.DeadlineExceeded}, "query-status: no reply yet", false},
		{errors.New("qmp: connection ended"), "connection ended", false},
	} {
		if got := notShutDown(c.err, time.Second).Error(); c.all && got != c.says || !strings.Contains(got, c.says) || !strings.HasPrefix(got, "the guest did not shut down within 1s") {
			t.Errorf("%v: %s", c.err, got)
		}
	}
}
