package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
)

// A Scenario is what happens to a lab, and what must be true afterwards.
type Scenario struct {
	Name    string
	Summary string
	// Cycles says that -n is the number of cycles in one life of the VM. Otherwise it is the number of lives.
	Cycles bool
	// Disk is the size of the guest's disk in bytes; 0 is the lab's default.
	Disk int64
	// Data is the size of a second disk of which so much is Filled, see [Options]; SyncSpeed limits resyncs.
	Data, Filled, SyncSpeed int64
	// Told says that the scenario tells its own story on standard output.
	Told bool
	// Boots is how often the guest boots in it: once when 0, as often as it comes when [AnyBoots]. Unless it is once, connections need not survive.
	Boots int
	// SmallState and Clock are what the lab needs besides: state folders that can be filled, daemons whose clocks can be set.
	SmallState, Clock bool
	// Links is how many it needs at least; one when 0.
	Links int
	// IPv6 and Attempts are the lab's, see [Options].
	IPv6     bool
	Attempts int
	// Libvirt says that libvirt has to start the QEMUs.
	Libvirt bool
	// Nodes is how many it needs; 2 when 0.
	Nodes int
	// Memory is each guest's in bytes; 0 is the lab's default.
	Memory int64
	// Steps are done in order. A step that fails ends the run.
	Steps func(p Params) []Step
	// Checks are made of the result when all steps were done, in addition to those that hold in every scenario.
	Checks []Check
}

// Params are what a person can say about a scenario.
type Params struct {
	N   int           // cycles
	For time.Duration // how long something lasts that has no end of its own
}

// A Step is one thing that is done to the lab, or waited for.
type Step struct {
	Name string
	Do   func(ctx context.Context, r *Run) error
	// Limit is how long it may take; stepLimit when 0.
	Limit time.Duration
}

// stepLimit is far more than any step takes on a slow machine: it turns a hang into an error.
const stepLimit = 2 * time.Minute

// A Check returns what is wrong with a result, or nil.
type Check func(*Result) error

// FindScenario returns a scenario by its name.
func FindScenario(name string) (*Scenario, error) {
	for i, s := range Scenarios {
		if s.Name == name {
			return &Scenarios[i], nil
		}
	}
	return nil, fmt.Errorf("%w: %q; see: coloctl lab list", ErrUnknownScenario, name)
}

// Run is one run of a scenario while it goes on.
type Run struct {
	Scenario *Scenario
	Lab      *Lab
	Clients  *Clients
	Result   *Result
	Marks    []Mark
	Rand     *rand.Rand
	Tell     *Teller

	losses      []loss
	checkpoints []colo.CheckpointStats // one for each time of protection, when it ended
	lost        string                 // the node that was lost last
	healed      time.Time              // when nothing was missing any more that the VM can't be protected without
	outage      loss                   // one that several steps are about
	extra       []*Track               // drawn beside the clients' own
	load        *load                  // nil unless there was one
	traffic     *traffic               // of a campaign
	guests      []*guestRun            // of a scenario with several VMs
}

// loss is one loss and what was measured of it.
type loss struct {
	at       time.Time
	until    time.Time // when all was well again
	planned  bool
	detect   *float64
	failover *float64
}

// RunOptions are those of one run.
type RunOptions struct {
	Seed uint64
	Params
	Lab  Options
	Tell *Teller
}

// Execute makes a lab, runs the scenario on it and removes it. The error of the result says what went wrong; the error returned is only for
// what makes a result impossible: an interruption, or a machine that can't run a lab.
func (s *Scenario) Execute(ctx context.Context, o RunOptions) (*Run, error) {
	o.Lab.Disk, o.Lab.SmallState = s.Disk, s.SmallState
	o.Lab.Data, o.Lab.Filled, o.Lab.SyncSpeed = s.Data, s.Filled, s.SyncSpeed
	o.Lab.IPv6, o.Lab.Attempts = s.IPv6, s.Attempts
	o.Lab.Nodes, o.Lab.Memory = s.Nodes, cmp.Or(s.Memory, o.Lab.Memory)
	o.Lab.Links = max(o.Lab.Links, s.Links)
	if s.Libvirt {
		o.Lab.Launcher = config.LauncherLibvirt
	}
	o.Lab.Tell = o.Tell.event
	r := &Run{
		Scenario: s, Rand: rand.New(rand.NewPCG(o.Seed, 0x636f6c6f)), Tell: o.Tell,
		Result: &Result{Scenario: s.Name, Seed: o.Seed, QEMU: ptr(o.Lab.Assets.Version), Accel: ptr(o.Lab.Assets.Accel)},
	}
	l, err := New(ctx, o.Lab)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, ErrPrecondition) {
			return r, errors.Join(context.Cause(ctx), err)
		}
		r.Result.Error = ptr(err.Error())
		return r, nil
	}
	r.Lab = l
	err = r.steps(ctx, s.Steps(Params{N: max(o.N, 1), For: o.For}))
	if r.load != nil {
		r.load.end() // a second time after a good run
	}
	if r.traffic != nil {
		r.traffic.end() // likewise
	}
	if r.Clients != nil {
		r.Clients.Abort() // after a good run they have ended already
	}
	for _, g := range r.guests {
		g.clients.Abort()
	}
	r.measure()
	if err == nil {
		err = r.check()
	}
	err = errors.Join(err, l.Err())
	err = errors.Join(err, l.Close())
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	r.Result.OK = err == nil
	if err != nil {
		r.Result.Error = ptr(err.Error())
	}
	return r, nil
}

func (r *Run) steps(ctx context.Context, steps []Step) error {
	for _, s := range steps {
		limit := s.Limit
		if limit == 0 {
			limit = stepLimit
		}
		sctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v", limit))
		err := s.Do(sctx, r)
		cause := context.Cause(sctx)
		cancel()
		if err != nil {
			if cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if err := r.Lab.agree(ctx); err != nil {
			return fmt.Errorf("after %s: %w", s.Name, err)
		}
	}
	return nil
}

// Plot draws what the clients felt.
func (r *Run) Plot(w io.Writer) error {
	title := fmt.Sprintf("%s: what the clients felt (QEMU %s, %s)", r.Scenario.Name, *r.Result.QEMU, *r.Result.Accel)
	if r.Clients == nil {
		return fmt.Errorf("%s: there is nothing to plot, no client ran", r.Scenario.Name)
	}
	return Plot(w, title, append(r.Clients.Tracks(), r.extra...), r.Marks)
}

// mark notes a moment for the plot.
func (r *Run) mark(loss bool, format string, args ...any) {
	r.Marks = append(r.Marks, Mark{At: time.Now(), Text: fmt.Sprintf(format, args...), Loss: loss})
}

// measure fills in what can be told from the records of the clients and the nodes. What can't stays null.
func (r *Run) measure() {
	if r.Clients != nil {
		r.measureLosses()
		r.measureClients()
	}
	if len(r.guests) > 0 {
		r.measureGuests()
	}
	r.measureCheckpoints()
	if broken, err := r.Lab.BrokenVoices(); err == nil {
		r.Result.OutputsFromBoth = ptr(len(broken))
		if len(broken) > 0 { // for the account
			text := strings.Join(broken[:min(len(broken), accountLines)], "\n") + "\n"
			_ = os.WriteFile(r.Lab.path(voicesName), []byte(text), 0o600)
		}
	}
}

// measureLosses takes the median of the losses for each figure.
func (r *Run) measureLosses() {
	res := r.Result
	for _, f := range []struct {
		into *(*float64)
		of   func(l loss) *float64
	}{
		{&res.DetectMS, func(l loss) *float64 { return l.detect }},
		{&res.FailoverMS, func(l loss) *float64 { return l.failover }},
		{&res.BlackoutHTTPMS, func(l loss) *float64 { return measured(r.Clients.HTTP.Blackout(l.at, l.until)) }},
		{&res.BlackoutTCPMS, func(l loss) *float64 { return measured(r.Clients.TCP.Blackout(l.at, l.until)) }},
		{&res.HTTPP50MS, func(l loss) *float64 { return measured(r.Clients.HTTP.Latency(0.5, l.at.Add(-baseline), l.at)) }},
		{&res.TCPP50MS, func(l loss) *float64 { return measured(r.Clients.TCP.Latency(0.5, l.at.Add(-baseline), l.at)) }},
	} {
		var all []float64
		for _, l := range r.losses {
			if v := f.of(l); v != nil {
				all = append(all, *v)
			}
		}
		*f.into = median(all)
	}
}

func measured(d time.Duration, ok bool) *float64 {
	if !ok {
		return nil
	}
	return ms(d)
}

func (r *Run) measureClients() {
	res := r.Result
	res.WritesAcked = ptr(r.Clients.Writes.Acked())
	if n := r.Clients.HTTP.BootIDs(); n > 0 {
		res.BootIDSame, res.Boots = ptr(n == 1), ptr(n)
	}
	total, broken := r.Clients.Connections()
	survived := total - len(broken)
	if c := res.Campaign; c != nil {
		total, survived = c.Connections, c.Survived
	}
	res.TCPTotal, res.TCPSurvived = &total, &survived
}

// measureCheckpoints counts those of all times of protection; of their medians it takes the median, of their 99th percentiles the worst.
func (r *Run) measureCheckpoints() {
	if len(r.checkpoints) == 0 {
		return
	}
	var count int64
	var p50 []float64
	var p99 time.Duration
	for _, c := range r.checkpoints {
		count += int64(c.Count)
		p50 = append(p50, *ms(c.PauseP50))
		p99 = max(p99, c.PauseP99)
	}
	r.Result.Checkpoints, r.Result.CheckpointPauseP50MS, r.Result.CheckpointPauseP99MS = &count, median(p50), ms(p99)
}

// baseline is how long before a loss the latency of normal operation is taken from.
const baseline = 3 * time.Second

// check applies what must hold in every scenario, then the scenario's own.
func (r *Run) check() error {
	var errs []error
	if len(r.guests) > 0 {
		for _, g := range r.guests {
			_, broken := g.clients.Connections()
			errs = append(errs, broken...)
		}
	} else if _, broken := r.Clients.Connections(); len(broken) > 0 && (r.Scenario.Boots == 0 || r.Scenario.Boots == 1) {
		errs = append(errs, broken...)
	}
	for _, c := range r.Scenario.checks() {
		if err := c(r.Result); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checks are all that a result of the scenario is held against.
func (s *Scenario) checks() []Check {
	want := s.Boots
	if want == 0 {
		want = 1
	}
	return slices.Concat(alwaysTrue, []Check{boots(want)}, s.Checks)
}

// AnyBoots is for a scenario in which chance decides how often the guest boots.
const AnyBoots = -1

// boots counts those of the guest that have answered.
func boots(want int) Check {
	return func(r *Result) error {
		switch {
		case r.Boots == nil:
			return errors.New("the guest never answered")
		case *r.Boots != want && want != AnyBoots:
			return fmt.Errorf("%d boots of the guest have answered, not %d", *r.Boots, want)
		}
		return nil
	}
}

// alwaysTrue are the checks of every scenario. A figure that they need and that wasn't measured is a failure too.
var alwaysTrue = []Check{
	zero("writes lost", func(r *Result) *int { return r.WritesLost }),
	zero("writes duplicated", func(r *Result) *int { return r.WritesDuplicated }),
	zero("frames that broke the rule of one voice", func(r *Result) *int { return r.OutputsFromBoth }),
	func(r *Result) error {
		if r.WritesAcked == nil || *r.WritesAcked == 0 {
			return errors.New("no write was acknowledged")
		}
		return nil
	},
}

func zero(what string, value func(*Result) *int) Check {
	return func(r *Result) error {
		switch v := value(r); {
		case v == nil:
			return fmt.Errorf("%s: not measured", what)
		case *v != 0:
			return fmt.Errorf("%s: %d", what, *v)
		}
		return nil
	}
}
