package lab

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/colo"
)

// The names are fixed: documents, CI and people's scripts use them. Later scenarios come behind these.
func TestScenarioNames(t *testing.T) {
	want := strings.Fields(`kill-primary-qemu kill-secondary-qemu freeze-primary freeze-secondary cut-link power-off-primary power-off-secondary
		switchover ping-pong story power-off-both power-off-both-one-returns kill-colod freeze-colod partition isolate-primary lose-arbiter
		arbiter-and-link slow-link clock-jump full-disk guest-reboot guest-shutdown flap
		restart-libvirtd disk-error-primary disk-error-secondary slow-disk resync-interrupted dirty-1pct crash-resync verify-corruption
		lose-one-link links-alternate link-degraded stranger key-rotation eight-vms three-nodes backup-while-protected arbiter-forgets
		kill-campaign kill-comparer latency distance`)
	var got []string
	for _, s := range Scenarios {
		got = append(got, s.Name)
	}
	if diff := cmp.Diff(want, got[:min(len(want), len(got))]); diff != "" {
		t.Error(diff)
	}
	for _, name := range got {
		if s, err := FindScenario(name); err != nil || s.Name != name || s.Summary == "" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if _, err := FindScenario("nothing"); !errors.Is(err, ErrUnknownScenario) {
		t.Errorf("got %v", err)
	}
}

// Every scenario starts the VM first and compares the writes, or tells of it, at the end: without that it could not fail.
func TestScenariosCompareTheWrites(t *testing.T) {
	for _, s := range Scenarios {
		for _, n := range []int{1, 3} {
			var names []string
			for _, step := range s.Steps(Params{N: n}) {
				names = append(names, step.Name)
			}
			text := strings.Join(names, "; ")
			use := clients.Name
			if strings.Contains(text, beginTraffic.Name) { // a campaign has clients of its own
				use = beginTraffic.Name
			}
			begin, end := []string{boot.Name, use, protect.Name, finish.Name}, halves.Name
			switch s.Name { // these have guests of their own
			case "eight-vms":
				begin, end = []string{bootMany.Name, protectMany.Name, finishMany.Name}, halvesMany.Name
			case "three-nodes":
				begin, end = []string{bootThree.Name, finishMany.Name}, halvesMany.Name
			}
			for _, want := range begin {
				if !strings.Contains(text, want) {
					t.Errorf("%s: no step %q in %s", s.Name, want, text)
				}
			}
			// The story ends with one host.
			if !s.Told && !strings.HasSuffix(text, end) {
				t.Errorf("%s: the halves are not compared at the end of %s", s.Name, text)
			}
			again := strings.Count(text, reprotected.Name)
			if use == beginTraffic.Name {
				again = max(strings.Count(text, killAComparer.Name), strings.Count(text, killOne.Name))
			}
			if s.Cycles && again != n {
				t.Errorf("%s: %d cycles, asked for %d", s.Name, again, n)
			}
		}
	}
}

func TestChecks(t *testing.T) {
	good := func() *Result {
		return &Result{Boots: ptr(1), WritesAcked: ptr(10), WritesLost: ptr(0), WritesDuplicated: ptr(0), OutputsFromBoth: ptr(0)}
	}
	failing := func(r *Result) (n int) {
		for _, c := range (&Scenario{}).checks() {
			if c(r) != nil {
				n++
			}
		}
		return n
	}
	if n := failing(good()); n != 0 {
		t.Errorf("a good result fails %d checks", n)
	}
	for name, spoil := range map[string]func(*Result){
		"another boot":         func(r *Result) { r.Boots = ptr(2) },
		"boot unknown":         func(r *Result) { r.Boots = nil },
		"a write lost":         func(r *Result) { r.WritesLost = ptr(1) },
		"lost not measured":    func(r *Result) { r.WritesLost = nil },
		"a write twice":        func(r *Result) { r.WritesDuplicated = ptr(1) },
		"two voices":           func(r *Result) { r.OutputsFromBoth = ptr(1) },
		"voices not measured":  func(r *Result) { r.OutputsFromBoth = nil },
		"nothing acknowledged": func(r *Result) { r.WritesAcked = ptr(0) },
	} {
		r := good()
		spoil(r)
		if n := failing(r); n != 1 {
			t.Errorf("%s: fails %d checks, want 1", name, n)
		}
	}
}

func TestSteps(t *testing.T) {
	var done []string
	step := func(name string, err error) Step {
		return Step{Name: name, Do: func(context.Context, *Run) error { done = append(done, name); return err }}
	}
	boom := errors.New("boom")
	err := (&Run{Lab: &Lab{}}).steps(t.Context(), []Step{step("a", nil), step("b", boom), step("c", nil)})
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "b: ") || strings.Join(done, "") != "ab" {
		t.Errorf("got %v after %v", err, done)
	}
	hang := Step{Name: "hang", Limit: 10 * time.Millisecond, Do: func(ctx context.Context, _ *Run) error { <-ctx.Done(); return ctx.Err() }}
	if err := (&Run{Lab: &Lab{}}).steps(t.Context(), []Step{hang}); err == nil || !strings.Contains(err.Error(), "not done within 10ms") {
		t.Errorf("a hanging step: got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrInterrupted)
	if err := (&Run{Lab: &Lab{}}).steps(ctx, []Step{hang}); !errors.Is(err, ErrInterrupted) {
		t.Errorf("an interrupted step: got %v", err)
	}
}

func TestProtectPause(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	step := func(ms int, name string) colo.Event { return colo.Event{Time: at(ms), Kind: "step", Text: name} }
	got := protectPause([]colo.Event{
		step(0, "copy the memory"), step(500, "switch the disks"), {Time: at(520), Kind: "state", Text: "prove COLO"}, step(540, "start COLO"),
		step(560, "prove COLO"), step(700, "count the peer's copy in"),
	})
	if got == nil || *got != 60 {
		t.Errorf("got %v", got)
	}
	if got := protectPause([]colo.Event{step(0, "prove COLO")}); got != nil {
		t.Errorf("got %v without a beginning", *got)
	}
}

// What a loss's figures are made of, with several losses.
func TestMeasure(t *testing.T) {
	start := time.UnixMilli(1_000_000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	c := &Clients{HTTP: &HTTPProbe{bootIDs: map[string]bool{"x": true}}, Writes: &CounterProbe{}, TCP: &EchoProbe{}, Stream: &StreamProbe{}}
	for i := 0; i < 20000; i += 5 {
		if i > 5000 && i < 5100 || i > 15000 && i < 15300 {
			continue // black
		}
		c.HTTP.add(at(i), at(i+2), true)
		c.TCP.add(at(i), at(i+1), true)
	}
	r := &Run{Clients: c, Result: &Result{}, Lab: &Lab{sniffers: map[string]*Sniffer{}}, losses: []loss{
		{at: at(5000), until: at(6000), detect: ptr(10.0), failover: ptr(50.0)},
		{at: at(15000), until: at(16000), planned: true, failover: ptr(70.0)},
	}, checkpoints: []colo.CheckpointStats{{Count: 4, PauseP50: time.Millisecond, PauseP99: 9 * time.Millisecond},
		{Count: 6, PauseP50: 3 * time.Millisecond, PauseP99: 8 * time.Millisecond}}}
	r.measureLosses()
	r.measureCheckpoints()
	r.measureClients()
	want := &Result{
		DetectMS: ptr(10.0), FailoverMS: ptr(60.0), BlackoutHTTPMS: ptr(200.0), BlackoutTCPMS: ptr(200.0), HTTPP50MS: ptr(2.0), TCPP50MS: ptr(1.0),
		Checkpoints: ptr(int64(10)), CheckpointPauseP50MS: ptr(2.0), CheckpointPauseP99MS: ptr(9.0),
		BootIDSame: ptr(true), Boots: ptr(1), WritesAcked: ptr(0), TCPTotal: ptr(2), TCPSurvived: ptr(2),
	}
	if diff := cmp.Diff(want, r.Result); diff != "" {
		t.Error(diff)
	}
}
