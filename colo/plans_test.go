package colo_test

import (
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// TestKillStuck: a primary is to be ended, and its process is kept by the kernel. The status says so, it is killed again, and all goes on when it has ended.
func TestKillStuck(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.patience = 20 * time.Millisecond
	p.restart()
	p.protect(colo.ProtectionSpec{})
	c := p.launchers["n1"].Copy("web")
	tried, release := c.Stick()
	defer release()
	c.Hang()
	<-tried
	p.await("n1", "the news", func(st colo.Status) bool { return strings.Contains(st.Outlook, "does not end") && st.PID != 0 })
	release()
	if st := p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Outdated && st.Plan == nil && st.PID == 0 }); st.Outlook != "" {
		t.Errorf("it has ended, and the status says %q", st.Outlook)
	}
	p.await("n2", "the VM", atRest(colo.Solo, "n2"))
}
