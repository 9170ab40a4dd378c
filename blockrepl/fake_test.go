package blockrepl

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

// fakeDisks answers for a QEMU with unprotected disks, whose jobs are what the
// test says.
type fakeDisks struct {
	*qmptest.Fake
	mu   sync.Mutex
	jobs map[string]qmp.Job
	next func(*qmp.Job) // changes a job each time it is listed
}

func newFakeDisks(t *testing.T, bitmaps ...qmp.DirtyBitmap) *fakeDisks {
	f := &fakeDisks{Fake: qmptest.New(t), jobs: map[string]qmp.Job{}, next: func(*qmp.Job) {}}
	f.Reply("query-named-block-nodes", []qmp.BlockNode{
		{NodeName: "colo-vda", Driver: "quorum", Children: []qmp.BlockChild{{Child: "children.0", NodeName: "parent-vda"}}},
		{NodeName: "parent-vda", Driver: "raw", DirtyBitmaps: bitmaps},
	})
	f.Reply("query-status", qmp.Status{Status: "finish-migrate"})
	start := func(kind string) qmptest.Handler {
		return func(args json.RawMessage) (any, error) {
			var a qmp.BlockdevMirror
			if err := json.Unmarshal(args, &a); err != nil {
				return nil, err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.jobs[a.JobID] = qmp.Job{ID: a.JobID, Type: kind, Status: "running", TotalProgress: 1000}
			return nil, nil
		}
	}
	f.Handle("blockdev-mirror", start("mirror"))
	f.Handle("blockdev-backup", start("backup"))
	f.Handle("query-jobs", func(json.RawMessage) (any, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		l := []qmp.Job{}
		for id, j := range f.jobs {
			f.next(&j)
			f.jobs[id] = j
			l = append(l, j)
		}
		return l, nil
	})
	f.Handle("block-job-cancel", func(json.RawMessage) (any, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, j := range f.jobs {
			j.Status = "concluded"
			f.jobs[id] = j
		}
		return nil, nil
	})
	f.Handle("job-dismiss", func(json.RawMessage) (any, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		clear(f.jobs)
		return nil, nil
	})
	return f
}

var oneDisk = []Disk{{Name: "vda", Path: "/a", Format: Raw, Size: 1024}}

// greeter is a peer whose export answers, or anything else that says text.
func greeter(text string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() { there.Write([]byte(text)) }()
		return here, nil
	}
}

func TestStall(t *testing.T) {
	for name, c := range map[string]struct {
		speed int64
		want  time.Duration // from the last progress to the error
	}{
		"unlimited": {0, 5 * time.Second},
		"limited":   {4 * mib, 9 * time.Second}, // 16 MiB may take 4 s more
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDisks(t)
				begin := time.Now()
				f.next = func(j *qmp.Job) { // 100 bytes a second for 4 s
					if s := time.Since(begin); s <= 4*time.Second {
						j.CurrentProgress = int64(s / (10 * time.Millisecond))
					}
				}
				var last Progress
				m := NewMirror(f.Client(t.Context()), oneDisk, Address{Host: "10.0.0.2", Port: 1}, Options{
					StallAfter: 5 * time.Second, Poll: 100 * time.Millisecond, Speed: c.speed, ProbeDial: greeter(greeting),
					OnProgress: func(p Progress) {
						if p.Rate > 0 {
							last = p
						}
					},
				})
				err := m.Sync(t.Context())
				var stall *StallError
				if !errors.As(err, &stall) || !errors.Is(err, ErrStalled) || stall.Done != 400 || stall.Cause != nil {
					t.Fatalf("%v", err)
				}
				if got := time.Since(begin) - 4*time.Second; got < c.want || got > c.want+200*time.Millisecond {
					t.Errorf("noticed %v after the last progress, want %v", got, c.want)
				}
				if last.Total != 1000 || m.Copied() != 400 {
					t.Errorf("progress %+v, copied %d", last, m.Copied())
				}
			})
		})
	}
}

func TestProgressRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDisks(t)
		begin := time.Now()
		f.next = func(j *qmp.Job) {
			j.CurrentProgress = min(1000, int64(time.Since(begin)/(10*time.Millisecond)))
			if j.CurrentProgress == 1000 {
				j.Status = "ready"
			}
		}
		var all []Progress
		m := NewMirror(f.Client(t.Context()), oneDisk, Address{Host: "10.0.0.2", Port: 1}, Options{
			Poll: 100 * time.Millisecond, ProbeDial: greeter(greeting), OnProgress: func(p Progress) { all = append(all, p) },
		})
		must(t, m.Sync(t.Context()))
		p := all[len(all)/2]
		if p.Rate < 95 || p.Rate > 105 || p.ETA < 4*time.Second || p.ETA > 6*time.Second || p.Ready {
			t.Errorf("half way: %+v", p)
		}
		if end := all[len(all)-1]; !end.Ready || end.Done != 1000 || end.ETA != 0 {
			t.Errorf("end: %+v", end)
		}
	})
}

// TestSilentQEMU: a QEMU that itself waits for the peer, and doesn't answer, is
// a stall too, and Abort's yank doesn't wait behind it.
func TestSilentQEMU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDisks(t)
		f.Reply("query-yank", []qmp.YankInstance{
			{Type: "chardev", ID: "monitor"}, {Type: "migration"}, {Type: "block-node", NodeName: "target-vda"}, {Type: "block-node", NodeName: "other"},
		})
		f.Handle("yank", func(json.RawMessage) (any, error) { f.Release("query-jobs"); return nil, nil })
		f.Hang("query-jobs")
		c := f.Client(t.Context())
		m := NewMirror(c, oneDisk, Address{Host: "10.0.0.2", Port: 1}, Options{StallAfter: 5 * time.Second, ProbeDial: greeter(greeting)})
		err := m.Sync(t.Context())
		var stall *StallError
		if !errors.As(err, &stall) || !errors.Is(stall.Cause, qmp.ErrTimeout) {
			t.Fatalf("%v", err)
		}
		must(t, m.Abort(t.Context()))
		var yanks []string
		for _, call := range f.Calls() {
			if call.Command == "yank" {
				yanks = append(yanks, call.String())
			}
		}
		if want := `oob yank {"instances":[{"type":"block-node","node-name":"target-vda"}]}`; len(yanks) != 1 || yanks[0] != want {
			t.Errorf("yanks %q, want %q", yanks, want)
		}
	})
}

// TestSequence holds the order of what QEMU is told, from the start to COLO.
func TestSequence(t *testing.T) {
	for _, mode := range []Mode{Full, Bitmap} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bitmaps []qmp.DirtyBitmap
				if mode == Bitmap {
					bitmaps = []qmp.DirtyBitmap{{Name: syncBitmap, Recording: true}}
				}
				f := newFakeDisks(t, bitmaps...)
				f.next = func(j *qmp.Job) {
					if j.CurrentProgress = j.TotalProgress; j.Type == "mirror" && j.Status == "running" {
						j.Status = "ready"
					} else {
						j.Status = "concluded"
					}
				}
				m := NewMirror(f.Client(t.Context()), oneDisk, Address{Host: "10.0.0.2", Port: 9100}, Options{Mode: mode, ProbeDial: greeter(greeting)})
				must(t, m.Sync(t.Context()))
				if mode == Full { // only a mirror in this state may be ended
					f.next = func(*qmp.Job) {}
				}
				must(t, m.Switch(t.Context()))
				var b strings.Builder
				for _, call := range f.Calls() {
					if !strings.HasPrefix(call.Command, "query-") {
						b.WriteString(call.String() + "\n")
					}
				}
				golden(t, "sequence-"+string(mode), b.String())
			})
		})
	}
}

// TestDeadMirror: a mirror that died between Sync and Switch is noticed, not
// mistaken for one that was ended.
func TestDeadMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDisks(t)
		f.next = func(j *qmp.Job) { j.Status = "ready" }
		m := NewMirror(f.Client(t.Context()), oneDisk, Address{Host: "10.0.0.2", Port: 9100}, Options{ProbeDial: greeter(greeting)})
		must(t, m.Sync(t.Context()))
		f.next = func(j *qmp.Job) { j.Status, j.Error = "concluded", "Input/output error" }
		if err := m.Switch(t.Context()); !errors.Is(err, ErrJobFailed) {
			t.Errorf("%v", err)
		}
	})
}

func TestOldQEMUWithoutOnCBWError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDisks(t)
		var got []string
		f.Handle("blockdev-backup", func(args json.RawMessage) (any, error) {
			got = append(got, string(args))
			if strings.Contains(string(args), "on-cbw-error") {
				return nil, errors.New("Parameter 'on-cbw-error' is unexpected")
			}
			return nil, nil
		})
		must(t, startPass(t.Context(), f.Client(t.Context()), passJob(oneDisk[0], 0)))
		if len(got) != 2 {
			t.Errorf("%q", got)
		}
	})
}

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		says string
		ok   bool
	}{
		"NBD server":     {greeting + "\x00\x03", true},
		"frozen":         {"", false},
		"half a word":    {"NBDM", false},
		"something else": {"SSH-2.0-OpenSSH_10.0\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				err := probe(t.Context(), greeter(c.says), Address{Host: "10.0.0.2", Port: 1}, 2*time.Second)
				if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnreachable) {
					t.Errorf("%v", err)
				}
				if d := time.Since(begin); d > 2*time.Second {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

func TestCommitState(t *testing.T) {
	d := oneDisk[0]
	childs := func(edges ...string) graph {
		n := qmp.BlockNode{NodeName: d.childs()}
		for i := 0; i < len(edges); i += 2 {
			n.Children = append(n.Children, qmp.BlockChild{Child: edges[i], NodeName: edges[i+1]})
		}
		return graph{d.childs(): n}
	}
	for name, c := range map[string]struct {
		g    graph
		want commitState
	}{
		"primary":    {graph{d.colo(): {}}, committed},
		"standby":    {childs("file", "active-vda"), replicating},
		"in COLO":    {childs("secondary disk", "#block056", "hidden disk", "hidden-vda", "file", "active-vda"), replicating},
		"committing": {childs("file", "#block140", "secondary disk", "parent-vda", "hidden disk", "hidden-vda"), committing},
		"failed":     {childs("file", "active-vda", "secondary disk", "parent-vda", "hidden disk", "hidden-vda"), commitFailed},
		"committed":  {childs("file", "parent-vda"), committed},
	} {
		if got := commitStateOf(c.g, d); got != c.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}

// TestDetachGoesOn: what one disk refuses doesn't leave the other's peer in the
// way.
func TestDetachGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Reply("query-named-block-nodes", []qmp.BlockNode{
			{NodeName: "colo-vda", Children: []qmp.BlockChild{{Child: "children.0", NodeName: "nbd-vda"}}}, {NodeName: "nbd-vda"},
			{NodeName: "colo-data-1", Children: []qmp.BlockChild{{Child: "children.0", NodeName: "parent-data-1"}, {Child: "children.7", NodeName: "nbd-data-1"}}}, {NodeName: "nbd-data-1"},
		})
		f.Handle("x-blockdev-change", func(args json.RawMessage) (any, error) {
			if strings.Contains(string(args), "colo-vda") {
				return nil, errors.New("The number of children cannot be lower than the vote threshold 1")
			}
			return nil, nil
		})
		if err := Detach(t.Context(), f.Client(t.Context()), twoDisks); err == nil {
			t.Error("no error")
		}
		var did []string
		for _, call := range f.Calls() {
			if !strings.HasPrefix(call.Command, "query-") {
				did = append(did, call.String())
			}
		}
		want := []string{
			`x-blockdev-change {"parent":"colo-vda","child":"children.0"}`,
			`x-blockdev-change {"parent":"colo-data-1","child":"children.7"}`,
			`blockdev-del {"node-name":"nbd-data-1"}`,
		}
		if strings.Join(did, "\n") != strings.Join(want, "\n") {
			t.Errorf("%q", did)
		}
	})
}
