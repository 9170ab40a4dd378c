package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

// Campaign is what became of long-lived connections at each of many losses. A connection that doesn't survive is opened anew before the next one.
type Campaign struct {
	Comparer string `json:"comparer"`
	Kills    int    `json:"kills"`
	// Connections that were open at a loss, summed up; Survived of them carried on without a wrong byte. By is the same by what they carried.
	Connections int                `json:"connections"`
	Survived    int                `json:"survived"`
	By          map[string]*Talked `json:"by"`
	Lost        []string           `json:"lost"` // how those have ended that did not survive
	// Short connections, one request each; an answer that came late is none that failed.
	Requests       int      `json:"requests"`
	RequestsFailed int      `json:"requests_failed"`
	RequestErrors  []string `json:"request_errors"`
	// The longest time without an answer to them around a kill: median and longest of all kills.
	BlackoutP50MS *float64 `json:"blackout_p50_ms"`
	BlackoutMaxMS *float64 `json:"blackout_max_ms"`

	blackouts []float64
}

// Talked counts the connections of one kind.
type Talked struct {
	Open     int `json:"open"`
	Survived int `json:"survived"`
}

// traffic is all the talks of a campaign and the short connections beside them.
type traffic struct {
	ctx    context.Context
	stop   context.CancelFunc
	dial   DialFunc
	talks  []*talk
	wg     sync.WaitGroup
	mu     sync.Mutex
	result *Campaign
}

// errorsKept bounds the texts in a result.
const errorsKept = 50

// beginTraffic is the clients of a campaign.
var beginTraffic = Step{Name: "start the mixed traffic", Do: func(ctx context.Context, r *Run) error {
	c := newClients(ctx, r.Lab.Dial, GuestAddr, r.writer())
	c.wg.Go(func() { c.Writes.Run(c.ctx) })
	r.Clients = c
	t := &traffic{dial: r.Lab.Dial, result: &Campaign{Comparer: r.Lab.opts.Comparer, By: map[string]*Talked{}}}
	t.ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.traffic, r.Result.Campaign = t, t.result
	for _, kind := range talkKinds {
		t.result.By[kind.name] = &Talked{}
	}
	t.wg.Go(func() { t.short(c.HTTP) })
	six := NewHTTPProbe(r.Lab.Dial, guestAddr6(service.PortHTTP))
	t.wg.Go(func() { t.short(six) })
	r.Tell.Say("mixed traffic begins: %d long connections, short ones, writes", len(talkKinds))
	return t.reopen(ctx)
}}

// short asks over a new connection each.
func (t *traffic) short(p *HTTPProbe) {
	p.client.Transport.(*http.Transport).DisableKeepAlives = true //nolint:forcetypeassert // it is made so
	every(t.ctx, 20*time.Millisecond, func() {
		sent := time.Now()
		id, err := fetchID(t.ctx, p.client, p.url)
		if t.ctx.Err() != nil {
			return
		}
		p.add(sent, time.Now(), err == nil)
		p.mu.Lock()
		if err == nil {
			p.bootIDs[id.BootID] = true
		}
		p.mu.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.result.Requests++
		if err != nil {
			t.result.RequestsFailed++
			if len(t.result.RequestErrors) < errorsKept {
				t.result.RequestErrors = append(t.result.RequestErrors, err.Error())
			}
		}
	})
}

// reopen begins a talk of each kind that has none.
func (t *traffic) reopen(ctx context.Context) error {
	for _, kind := range talkKinds {
		if slices.ContainsFunc(t.talks, func(k *talk) bool { return k.kind.name == kind.name }) {
			continue
		}
		k, err := startTalk(t.ctx, t.dial, kind)
		for err != nil && ctx.Err() == nil {
			k, err = startTalk(t.ctx, t.dial, kind)
		}
		if err != nil {
			return err
		}
		t.talks = append(t.talks, k)
	}
	return nil
}

// answers waits until each talk has been answered since a moment, has ended, or was silent for survivalGrace, and returns why those ended that
// did. They are not among the talks any more.
func (t *traffic) answers(ctx context.Context, since time.Time) (map[*talk]error, error) {
	lost := map[*talk]error{}
	deadline := time.Now().Add(survivalGrace)
	for _, k := range t.talks {
		k.ask()
		_, _ = k.answeredSince(since) // begins to count
	}
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for open := slices.Clone(t.talks); len(open) > 0; {
		open = slices.DeleteFunc(open, func(k *talk) bool {
			ok, err := k.answeredSince(since)
			if err == nil && !ok && time.Now().After(deadline) {
				err = fmt.Errorf("%w: %s", errNoLastAnswer, tcpState(k.conn))
			}
			if err != nil {
				lost[k] = err
			}
			return ok || err != nil
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return lost, context.Cause(ctx)
		}
	}
	for k := range lost {
		k.end()
	}
	t.talks = slices.DeleteFunc(t.talks, func(k *talk) bool { return lost[k] != nil })
	return lost, nil
}

func (t *traffic) end() {
	t.stop()
	for _, k := range t.talks {
		k.end()
	}
	t.wg.Wait()
}

// count adds one loss to the result.
func (t *traffic) count(open []*talk, lost map[*talk]error, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Kills++
	for _, k := range open {
		by := t.result.By[k.kind.name]
		by.Open++
		t.result.Connections++
		if err := lost[k]; err != nil {
			if len(t.result.Lost) < errorsKept {
				t.result.Lost = append(t.result.Lost, fmt.Sprintf("kill %d, %s: %s: %v", t.result.Kills, what, k.kind.name, err))
			}
			continue
		}
		by.Survived++
		t.result.Survived++
	}
}

// blackout notes how long short connections waited.
func (t *traffic) blackout(p *HTTPProbe, from, to time.Time) {
	if d, ok := p.Blackout(from, to); ok {
		t.result.blackouts = append(t.result.blackouts, *ms(d))
		t.result.BlackoutP50MS, t.result.BlackoutMaxMS = median(t.result.blackouts), ptr(slices.Max(t.result.blackouts))
	}
}

// calm waits until all talks go on under protection. What breaks here has not broken at a loss, and is an error of its own.
func (r *Run) calm(ctx context.Context) error {
	if err := r.traffic.reopen(ctx); err != nil {
		return err
	}
	lost, err := r.traffic.answers(ctx, time.Now())
	if err != nil {
		return err
	}
	for k, why := range lost {
		return fmt.Errorf("between two losses: %s: %w", k.kind.name, why)
	}
	return nil
}

// killOne loses a random side at a random moment. The daemons protect the VM again meanwhile.
var killOne = Step{Name: "kill a QEMU", Limit: 6 * time.Minute, Do: func(ctx context.Context, r *Run) error {
	t := r.traffic
	before, _, err := r.awaitProtected(ctx, r.healed)
	if err != nil {
		return err
	}
	if err := r.calm(ctx); err != nil {
		return err
	}
	if err := pause(ctx, r.between(0, time.Second)); err != nil {
		return err
	}
	what, name := "the primary's QEMU", before
	if r.Rand.IntN(3) == 0 {
		what, name = "the secondary's QEMU", Other(before)
	}
	at := time.Now()
	r.healed = at
	open := slices.Clone(t.talks)
	if err := r.Lab.Node(name).KillQEMU(ctx); err != nil {
		return err
	}
	solo, err := r.Lab.Journal.Await(ctx, at, func(e colo.Event) bool { return e.VM == VM && e.Kind == "state" && e.State == colo.Solo })
	if err != nil {
		return fmt.Errorf("nobody goes on: %w", err)
	}
	lost, err := t.answers(ctx, solo.Time)
	if err != nil {
		return err
	}
	t.count(open, lost, what)
	if err := r.Clients.HTTP.Await(ctx, solo.Time); err != nil {
		return err
	}
	t.blackout(r.Clients.HTTP, at, time.Now())
	r.Tell.Say("kill %d, %s of %s: %d of %d connections survived, %d of %d so far", t.result.Kills, what, name, len(open)-len(lost), len(open), t.result.Survived, t.result.Connections)
	return nil
}}

// killAComparer kills the primary's comparer at a random moment; nothing else may happen to the VM.
var killAComparer = Step{Name: "kill the comparer", Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	client := comparer.NewClient(r.Lab.path(name, "run", VM))
	defer client.Close()
	if err := pause(ctx, r.between(0, time.Second)); err != nil {
		return err
	}
	at := time.Now()
	var status comparer.Status
	err = poll(ctx, func() (bool, error) { // it may still be starting
		var err error
		status, err = client.Status(ctx)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	open := slices.Clone(r.traffic.talks)
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		return err
	}
	lost, err := r.traffic.answers(ctx, time.Now())
	if err != nil {
		return err
	}
	r.traffic.count(open, lost, "the comparer")
	if err := r.Clients.HTTP.Await(ctx, at); err != nil {
		return err
	}
	r.traffic.blackout(r.Clients.HTTP, at, time.Now())
	if err := r.traffic.reopen(ctx); err != nil {
		return err
	}
	return r.sameRoles(at)
}}

// endTraffic ends the clients and compares what was acknowledged with what the guest has.
var endTraffic = Step{Name: "compare writes", Limit: 5 * time.Minute, Do: func(ctx context.Context, r *Run) error {
	if _, _, err := r.awaitProtected(ctx, r.healed); err != nil {
		return err
	}
	if err := r.calm(ctx); err != nil {
		return err
	}
	r.traffic.end()
	return finish.Do(ctx, r)
}}

func killCampaign(p Params) []Step {
	steps := []Step{boot, beginTraffic, protect}
	for range p.N {
		steps = append(steps, killOne)
	}
	return append(steps, endTraffic, halves)
}

func killComparers(p Params) []Step {
	steps := []Step{boot, beginTraffic, protect}
	for range p.N {
		steps = append(steps, killAComparer)
	}
	return append(steps, killOne, endTraffic, halves)
}

// allTalksSurvived holds for the comparer of streams. QEMU's own is only counted.
func allTalksSurvived(r *Result) error {
	c := r.Campaign
	var errs []error
	if c == nil || c.Kills == 0 || c.Connections == 0 {
		return errors.New("nothing was measured")
	}
	for _, e := range append(slices.Clone(c.Lost), c.RequestErrors...) {
		if strings.Contains(e, ErrChecksum.Error()) {
			errs = append(errs, errors.New("a wrong byte: "+e))
		}
	}
	if c.Comparer != colo.ComparerBuiltin && c.Survived != c.Connections {
		errs = append(errs, fmt.Errorf("%d of %d connections survived: %s", c.Survived, c.Connections, strings.Join(c.Lost, "; ")))
	}
	return errors.Join(errs...)
}
