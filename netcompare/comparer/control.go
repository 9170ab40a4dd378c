package comparer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/netcompare/compare"
)

// ErrTaken is returned by Run when the folder has a comparer already.
var ErrTaken = errors.New("another comparer is there")

// Status is how a comparer is.
type Status struct {
	PID      int           `json:"pid"`
	VM       string        `json:"vm"`
	InColo   bool          `json:"in_colo"`
	Held     string        `json:"held,omitempty"` // why nothing leaves any more
	Live     bool          `json:"live"`           // it compares; otherwise it holds everything
	Engine   compare.Stats `json:"engine"`
	Memory   int           `json:"memory"`       // bytes of packets
	OutLost  uint64        `json:"out_lost"`     // packets that a tap didn't take
	PauseP50 time.Duration `json:"pause_p50"`    // of the last checkpoints, from STOP to RESUME
	PauseP99 time.Duration `json:"pause_p99"`    // the same
	Settings Settings      `json:"settings"`     // in force
	Lapses   uint64        `json:"lapses"`       // how often packets waited because it wasn't sure of the secondary
	Turns    uint64        `json:"turns"`        // of the loop
	Peak     int64         `json:"resident_max"` // bytes of memory of the process at its peak
	// FailedWrites are the block nodes on which QEMU has reported a write that failed since COLO began. QEMU says so once, to who listens: this
	// process does also while no daemon runs.
	FailedWrites []string `json:"failed_writes,omitempty"`
}

// pauses are the last checkpoints' durations.
type pauses struct {
	d [256]time.Duration
	n int
}

func (p *pauses) add(d time.Duration) {
	p.d[p.n%len(p.d)] = d
	p.n++
}

func (p *pauses) quantile(q float64) time.Duration {
	n := min(p.n, len(p.d))
	if n == 0 {
		return 0
	}
	s := slices.Clone(p.d[:n])
	slices.Sort(s)
	return s[min(n-1, int(q*float64(n)))]
}

// status must be called in the loop.
func (l *loop) status() Status {
	s := Status{PID: os.Getpid(), VM: l.cfg.VM, InColo: l.inColo, Held: l.holdWhy, Live: l.eng.Live(), Engine: l.eng.Stats(), Memory: l.pool.Used(),
		PauseP50: l.pauses.quantile(0.5), PauseP99: l.pauses.quantile(0.99), Settings: l.cfg.Settings, Turns: l.turns, Lapses: l.lapses, FailedWrites: slices.Clone(l.failed)}
	for _, o := range l.out {
		s.OutLost += o.dropped
	}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		s.Peak = ru.Maxrss << 10
	}
	return s
}

func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrTaken, dir)
		}
		return nil, err
	}
	// For people and for a Keeper that must end one that doesn't answer.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// listen serves the control socket: HTTP, for the folder's owner only.
func (l *loop) listen(path string) (stop func(), err error) {
	if len(path) > unixPathMax {
		return nil, fmt.Errorf("socket path %s is too long", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path) //nolint:noctx // returns at once
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	in := func(f func(http.ResponseWriter, *http.Request) (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
			defer cancel()
			v, err := f(w, r.WithContext(ctx))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v) // who asked is gone
		}
	}
	busy := errors.New("the loop doesn't answer")
	status := func(_ http.ResponseWriter, r *http.Request) (any, error) {
		var s Status
		if !l.do(r.Context(), func() { s = l.status() }) {
			return nil, busy
		}
		return s, nil
	}
	mux.HandleFunc("GET /status", in(status))
	mux.HandleFunc("PUT /settings", in(func(w http.ResponseWriter, r *http.Request) (any, error) {
		var s Settings
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := errors.Join(d.Decode(&s), s.check()); err != nil {
			return nil, err
		}
		if !l.do(r.Context(), func() { l.cfg.Settings = s; l.eng.Tune(s.engine()) }) {
			return nil, busy
		}
		return status(w, r)
	}))
	mux.HandleFunc("POST /checkpoint", in(func(w http.ResponseWriter, r *http.Request) (any, error) {
		if !l.do(r.Context(), func() { l.eng.Ask(monotonic()) }) {
			return nil, busy
		}
		return status(w, r)
	}))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		v, err := status(w, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(metrics(v.(Status)))) //nolint:forcetypeassert // who asked is gone
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() { // ends with Close
		defer close(ended)
		_ = srv.Serve(ln)
	}()
	return func() {
		_ = srv.Close()
		<-ended
	}, nil
}

// metrics is Prometheus' text format.
func metrics(s Status) string {
	var b strings.Builder
	put := func(name, kind, help string, v any, labels string) {
		if help != "" {
			fmt.Fprintf(&b, "# HELP coloctl_compare_%s %s\n# TYPE coloctl_compare_%s %s\n", name, help, name, kind)
		}
		fmt.Fprintf(&b, "coloctl_compare_%s{vm=%q%s} %v\n", name, s.VM, labels, v)
	}
	e := s.Engine
	put("primary_packets_total", "counter", "Packets of the primary's guest.", e.Primary, "")
	put("secondary_packets_total", "counter", "Packets of the secondary's guest.", e.Secondary, "")
	put("released_packets_total", "counter", "Packets that left.", e.Released, "")
	put("waited_packets_total", "counter", "Packets that left after they had to wait.", e.Waited, "")
	put("covered_packets_total", "counter", "Packets that a checkpoint let go.", e.Covered, "")
	put("dropped_packets_total", "counter", "Packets that a bound or the end of COLO has dropped.", e.Dropped+s.OutLost, "")
	put("checkpoints_total", "counter", "Checkpoints seen.", e.Checkpoints, "")
	put("lapses_total", "counter", "How often packets waited because it was not sure that the other copy is a secondary.", s.Lapses, "")
	help := "Checkpoints that were asked for, by reason."
	reasons := make([]string, 0, len(e.Asked))
	for why := range e.Asked {
		reasons = append(reasons, why)
	}
	slices.Sort(reasons)
	for _, why := range reasons {
		put("asked_total", "counter", help, e.Asked[why], fmt.Sprintf(",reason=%q", why))
		help = ""
	}
	put("waiting_packets", "gauge", "Packets that wait.", e.Waiting, "")
	put("flows", "gauge", "Flows that are known.", e.Flows, "")
	put("memory_bytes", "gauge", "Memory that packets take.", s.Memory, "")
	live := 0
	if s.Live {
		live = 1
	}
	put("live", "gauge", "1 if packets are compared, 0 if all are held.", live, "")
	return b.String()
}
