package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/netcompare"
)

// Latency is what a client feels of a guest alone and protected in several ways, measured in turns on the same guest.
type Latency struct {
	Ways []*Way `json:"ways"` // the first is the guest alone
}

// A Way is one way to run the guest. Ratios are to the guest alone: of times what protection costs, of the download what is left.
type Way struct {
	Name string `json:"name"`
	// RTTMS was added to each round trip between the nodes.
	RTTMS float64 `json:"rtt_ms"`
	// Fresh are small requests on a new connection each, Writes requests that the guest writes to its disk, flushed, before it answers.
	Fresh    Quantiles `json:"fresh"`
	Writes   Quantiles `json:"writes"`
	Download *float64  `json:"download_mb_s"` // median of some of 32 MB
	// DownloadRatio is of the download's rate.
	DownloadRatio *float64 `json:"download_ratio"`
	// PauseP50MS is how long the guest stood still at a checkpoint while this was measured, Checkpoints how many there were.
	PauseP50MS  *float64 `json:"pause_p50_ms"`
	Checkpoints int64    `json:"checkpoints"`

	fresh, writes, downloads, pauses []float64
	compare                          func(p *colo.ProtectionSpec)
	rtt                              time.Duration
	plain                            bool // without the routes that the nodes make
}

// Quantiles of latencies, in milliseconds, and their ratios to those of the guest alone.
type Quantiles struct {
	N      int      `json:"n"`
	P50    *float64 `json:"p50_ms"`
	P90    *float64 `json:"p90_ms"`
	P99    *float64 `json:"p99_ms"`
	Max    *float64 `json:"max_ms"`
	Ratio  *float64 `json:"p50_ratio"`
	Ratio9 *float64 `json:"p90_ratio"`
	RatioX *float64 `json:"p99_ratio"`
}

const (
	latencyRounds    = 8
	latencyFresh     = 75 // requests a round
	latencyWrites    = 25
	latencyDownloads = 1
	latencyBlob      = 32 << 20
)

// recipeDelay and recipeTimeout are what QEMU does when nobody tells it: x-checkpoint-delay, compare_timeout and expired_scan_cycle.
const (
	recipeDelay   = 20 * time.Second
	recipeTimeout = 3 * time.Second
)

func latencyWays() []*Way {
	return []*Way{
		{Name: "alone"},
		{Name: "stream", compare: func(p *colo.ProtectionSpec) { p.Comparer = colo.ComparerStream }},
		{Name: "builtin, short timeouts", compare: func(p *colo.ProtectionSpec) {
			p.Comparer, p.Profile = colo.ComparerBuiltin, "latency"
		}},
		{Name: "plain recipe", plain: true, compare: func(p *colo.ProtectionSpec) {
			p.Comparer, p.CheckpointDelay = colo.ComparerBuiltin, colo.Duration(recipeDelay)
			p.CompareTimeout, p.ExpiredScanCycle = colo.Duration(recipeTimeout), colo.Duration(recipeTimeout)
		}},
	}
}

// distanceWays are protection over links of several lengths. A process carries the frames of all but the first.
func distanceWays() []*Way {
	ways := []*Way{{Name: "alone"}}
	for _, rtt := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond} {
		ways = append(ways, &Way{Name: fmt.Sprintf("stream, RTT %v", rtt), RTTMS: *ms(rtt), rtt: rtt, compare: func(p *colo.ProtectionSpec) { p.Comparer = colo.ComparerStream }})
	}
	return ways
}

// quietClients use the guest only when they are asked to: nothing else may be in the figures.
var quietClients = Step{Name: clients.Name, Do: func(ctx context.Context, r *Run) error {
	c := newClients(ctx, r.Lab.Dial, GuestAddr, r.writer())
	r.Clients = c
	id, err := fetchID(ctx, c.HTTP.client, c.HTTP.url)
	c.HTTP.bootIDs[id.BootID] = true
	return err
}}

// measureLatency lets the guest run in each way, several times around.
func measureLatency(ways func() []*Way) Step {
	return Step{Name: protect.Name + " in several ways, and measure requests", Limit: 25 * time.Minute, Do: func(ctx context.Context, r *Run) error {
		return r.measureWays(ctx, ways())
	}}
}

func (r *Run) measureWays(ctx context.Context, ways []*Way) error {
	res := &Latency{Ways: ways}
	r.Result.Latency = res
	for round := range latencyRounds {
		for _, w := range res.Ways {
			if err := r.runWay(ctx, w, round); err != nil {
				return fmt.Errorf("%s: %w", w.Name, err)
			}
		}
	}
	res.sum()
	for _, w := range res.Ways {
		r.Tell.Say("%s: %s", w.Name, w)
	}
	// What is compared at the end is protected as usual.
	return r.protectedBy(ctx, func(p *colo.ProtectionSpec) { p.Comparer = colo.ComparerStream })
}

// runWay measures one way once. The VM runs alone before and afterwards.
func (r *Run) runWay(ctx context.Context, w *Way, round int) (err error) {
	if w.compare == nil {
		return w.measure(ctx, r, round)
	}
	if w.rtt > 0 {
		for _, link := range r.Lab.Topology.Links {
			slow, serr := link.Slow(w.rtt/2, 0, 1)
			if serr != nil {
				return serr
			}
			defer func() { err = errors.Join(err, slow.Close(), link.Restore()) }()
		}
	}
	if err := r.protectedBy(ctx, w.compare); err != nil {
		return err
	}
	if w.plain {
		if err := r.Lab.plainRoutes(ctx); err != nil {
			return err
		}
	}
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	if err := w.measure(ctx, r, round); err != nil {
		return err
	}
	n := r.Lab.Node(name)
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	if s.Checkpoints.Count > 0 {
		w.Checkpoints += int64(s.Checkpoints.Count) //nolint:gosec // a small number
		w.pauses = append(w.pauses, *ms(s.Checkpoints.PauseP50))
	}
	op, err := n.Client.Unprotect(ctx, VM, api.Request{})
	return await(ctx, n, op, err)
}

// protectedBy changes how the lone VM is to be protected, and protects it.
func (r *Run) protectedBy(ctx context.Context, change func(*colo.ProtectionSpec)) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	n := r.Lab.Node(name)
	text, tag, err := n.Client.Spec(ctx, VM)
	if err != nil {
		return err
	}
	s, err := colo.ParseSpec(text, "")
	if err != nil {
		return err
	}
	s.Protection = colo.ProtectionSpec{Level: s.Protection.Level}
	change(&s.Protection)
	if text, err = colo.MarshalSpec(s); err != nil {
		return err
	}
	if _, err := n.Client.SetSpec(ctx, VM, api.SpecText{YAML: text}, tag); err != nil {
		return err
	}
	return r.Lab.Protect(ctx)
}

// plainRoutes takes away the routes that the nodes have made for each other. Connections obey at once.
func (l *Lab) plainRoutes(ctx context.Context) error {
	for _, name := range NodeNames {
		host := netcompare.Host{Netns: l.Topology.Nodes[name].Netns()}
		peers, err := host.QuickAcks(ctx)
		if err != nil {
			return err
		}
		for _, p := range peers {
			if err := host.ClearQuickAck(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *Way) measure(ctx context.Context, r *Run, round int) error {
	fresh := &http.Client{Transport: &http.Transport{DialContext: r.Lab.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Minute}
	for range latencyFresh {
		sent := time.Now()
		if _, err := fetchID(ctx, fresh, r.Clients.HTTP.url); err != nil {
			return err
		}
		w.fresh = append(w.fresh, *ms(time.Since(sent)))
	}
	for i := range latencyWrites {
		sent := time.Now()
		for id := fmt.Sprintf("%s-%s-%d-%d", r.Clients.Writes.prefix, strings.NewReplacer(" ", "-", ",", "").Replace(w.Name), round, i); !r.Clients.Writes.write(ctx, id); {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		w.writes = append(w.writes, *ms(time.Since(sent)))
	}
	for range latencyDownloads {
		sent := time.Now()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/blob?size=%d&seed=3", guestAddr(service.PortHTTP), latencyBlob), nil)
		if err != nil {
			return err
		}
		resp, err := fresh.Do(req)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return fmt.Errorf("download: after %d bytes: %w", n, err)
		}
		w.downloads = append(w.downloads, float64(n)/1e6/time.Since(sent).Seconds())
	}
	return nil
}

// sum makes the figures of what was measured.
func (l *Latency) sum() {
	alone := l.Ways[0]
	for _, w := range l.Ways {
		w.Fresh, w.Writes = quantiles(w.fresh, alone.fresh), quantiles(w.writes, alone.writes)
		w.Download, w.PauseP50MS = median(w.downloads), median(w.pauses)
		w.DownloadRatio = over(w.Download, alone.Download)
	}
}

func quantiles(all, base []float64) Quantiles {
	of := func(all []float64, q float64) *float64 {
		if len(all) == 0 {
			return nil
		}
		s := slices.Sorted(slices.Values(all))
		return ptr(s[min(len(s)-1, int(q*float64(len(s))))])
	}
	q := Quantiles{N: len(all), P50: of(all, 0.5), P90: of(all, 0.9), P99: of(all, 0.99), Max: of(all, 1)}
	q.Ratio, q.Ratio9, q.RatioX = over(q.P50, of(base, 0.5)), over(q.P90, of(base, 0.9)), over(q.P99, of(base, 0.99))
	return q
}

func over(a, b *float64) *float64 {
	if a == nil || b == nil || *b == 0 {
		return nil
	}
	return ptr(*a / *b)
}

func (w *Way) String() string {
	f := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return fmt.Sprintf("%.1f", *v)
	}
	q := func(q Quantiles) string {
		return fmt.Sprintf("p50 %s (%s), p90 %s (%s), p99 %s (%s), max %s ms", f(q.P50), f(q.Ratio), f(q.P90), f(q.Ratio9), f(q.P99), f(q.RatioX), f(q.Max))
	}
	return fmt.Sprintf("new connections %s; writes %s; download %s MB/s (%s); pause %s ms, %d checkpoints", q(w.Fresh), q(w.Writes), f(w.Download), f(w.DownloadRatio), f(w.PauseP50MS), w.Checkpoints)
}

func compareWays(ways func() []*Way) func(Params) []Step {
	return func(Params) []Step { return []Step{boot, quietClients, measureLatency(ways), finish, halves} }
}
