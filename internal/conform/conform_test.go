package conform

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/provision"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// prove runs all checks.
func prove(t *testing.T, qemu, img string) map[string]Check {
	t.Helper()
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "needs root, for networks of its own")
	}
	dir, err := os.MkdirTemp("/tmp", "conform") // short: it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p := &Proof{OK: true}
	if err := Run(t.Context(), Options{QEMU: []string{qemu}, QEMUImg: []string{img}, Accel: "tcg", Dir: dir}, p); err != nil {
		t.Fatal(err)
	}
	found := map[string]Check{}
	for _, c := range p.Checks {
		t.Logf("%v %-34s %s", c.OK, c.Rule, c.Text)
		found[c.Rule] = c
	}
	return found
}

func TestNewest(t *testing.T) {
	for rule, c := range prove(t, qemutest.QEMU(t), qemutest.Img(t)) {
		if !c.OK {
			t.Errorf("%s: %s", rule, c.Text)
		}
	}
}

// TestOlder is with the oldest QEMU that can do everything but a series of checkpoints under TCG. How many it makes before it stands still is chance.
func TestOlder(t *testing.T) {
	tools, err := provision.Release(t.Context(), "trixie", provision.Options{})
	if errors.Is(err, provision.ErrNetwork) || errors.Is(err, provision.ErrNoApt) || errors.Is(err, provision.ErrNoMirror) {
		qemutest.Need(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	found := prove(t, tools.QEMU[0], tools.QEMUImg[0])
	for rule, c := range found {
		if !c.OK && rule != Checkpoints {
			t.Errorf("%s: %s", rule, c.Text)
		}
	}
	if c := found[Capabilities]; c.Text != "x-colo alone" {
		t.Errorf("the choice of capabilities: %s", c.Text)
	}
	if c := found[Checkpoints]; !c.OK && (!strings.Contains(c.Text, "stands still at checkpoint") || c.Remedy == "") {
		t.Errorf("%+v", c)
	}
}

// A check that fails is told from those that were never tried, and both from what is good.
func TestProof(t *testing.T) {
	p := &Proof{OK: true}
	p.Add("a", nil, "fine", "never said")
	p.Skip("b", "no such kernel")
	if !p.OK || p.Checks[0].Remedy != "" || p.Checks[1].OK || !p.Checks[1].NotTried {
		t.Errorf("%+v", p)
	}
	if p.Add("c", errors.New("broken"), "fine", "mend it") || p.OK || p.Checks[2].Text != "broken" || p.Checks[2].NotTried {
		t.Errorf("%+v", p)
	}
}

func TestJudge(t *testing.T) {
	ms, bytes, disk, n, less := 12.4, int64(1e6), int64(64e6), 7, 6
	good := lab.Result{
		Scenario: "s", OK: true, ProtectMS: &ms, CheckpointPauseP50MS: &ms, CheckpointPauseP99MS: &ms, FailoverMS: &ms, BlackoutHTTPMS: &ms, ReprotectMS: &ms,
		ResyncBytes: &bytes, DiskBytes: &disk, TCPTotal: &n, TCPSurvived: &n,
	}
	p := &Proof{OK: true}
	if p.Judge(&good); !p.OK || len(p.Checks) != 9 || p.Checks[1].Text != "12 ms" {
		t.Errorf("%+v", p)
	}
	for name, spoil := range map[string]func(*lab.Result){
		"the scenario": func(r *lab.Result) { r.OK = false },
		"no figure":    func(r *lab.Result) { r.FailoverMS = nil },
		"a full copy":  func(r *lab.Result) { r.ResyncBytes = &disk },
		"a connection": func(r *lab.Result) { r.TCPSurvived = &less },
	} {
		bad, p := good, &Proof{OK: true}
		spoil(&bad)
		if p.Judge(&bad); p.OK {
			t.Errorf("%s: found good", name)
		}
	}
}
