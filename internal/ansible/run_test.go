package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

type m = map[string]any

// TestLife takes a VM through all states, each twice: the second time nothing is changed, and before the first time a check changes nothing at all.
func TestLife(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.start()
	steps := []struct {
		name    string
		params  m
		primary string // afterwards
		before  string // in the difference
		after   string
	}{
		{"a VM that isn't there is absent", m{"state": "absent"}, "", "", ""},
		{"nor does it run", m{"state": "stopped"}, "", "", ""},
		{"present", m{"state": "present", "spec": webSpec}, "", "state: absent", "state: stopped"},
		{"changed while it is stopped", m{"state": "present", "spec": m{"name": "web", "memory": "512MiB", "vcpus": "2", "disks": []m{{"name": "vda", "file": "web.raw", "size": "64MiB"}}}},
			"", "  memory: 256MiB", "  memory: 512MiB"},
		{"protected, from being stopped", m{"state": "protected"}, "n1", "state: stopped", "state: protected\nprimary: n1"},
		{"started is it already", m{"state": "started"}, "n1", "", ""},
		{"present is it too", m{"state": "present"}, "n1", "", ""},
		{"unprotected", m{"state": "unprotected"}, "n1", "state: protected", "state: running alone"},
		{"its protection changed while it runs alone", m{"state": "unprotected", "spec": m{"name": "web", "memory": "512MiB", "vcpus": 2,
			"disks": []m{{"name": "vda", "file": "web.raw", "size": 67108864}}, "protection": m{"checkpoint-delay": "1s"}}}, "n1", "checkpoint-delay: 300ms", "checkpoint-delay: 1s"},
		{"protected again", m{"state": "protected", "resync": "full"}, "n1", "state: running alone", "state: protected"},
		{"not here", m{"state": "switched-over"}, "n2", "primary: n1", "primary: n2"},
		{"protected, by nobody's request but the nodes' own", m{"state": "protected", "socket": s.socket("n2")}, "n2", "state: running alone", "state: protected"},
		{"there is it already", m{"state": "switched-over", "primary": "n2"}, "n2", "", ""},
		{"and back", m{"state": "switched-over", "socket": s.socket("n2")}, "n1", "primary: n2", "primary: n1"},
		{"stopped by its grace", m{"state": "stopped", "force": "yes"}, "", "state: ", "state: stopped"},
		{"absent here", m{"state": "absent", "delete_images": true}, "", "state: stopped", "state: absent"},
		{"absent there", m{"state": "absent", "socket": s.socket("n2")}, "", "state: stopped", "state: absent"},
	}
	for _, x := range steps {
		p := maps.Clone(x.params)
		p["name"], p["timeout"], p["reason"] = "web", "40s", "check: "+x.name
		p["_ansible_diff"] = true

		p["_ansible_check_mode"] = true
		check := s.task(maps.Clone(p))
		delete(p, "_ansible_check_mode")
		p["reason"] = x.name
		first := s.task(maps.Clone(p))
		for _, h := range s.history() { // in the order of what was asked for
			if strings.Contains(h, "check: ") {
				t.Errorf("%s: the check acted: %s", x.name, h)
			}
		}
		second := s.task(maps.Clone(p))
		byItself := strings.Contains(x.name, "the nodes' own") // whether the node or the task is first is not known
		want := x.after != ""
		switch {
		case check.Failed || first.Failed || second.Failed:
			t.Fatalf("%s:\n%+v\n%+v\n%+v", x.name, check, first, second)
		case !byItself && check.Changed != want, !byItself && first.Changed != want, second.Changed:
			t.Errorf("%s: changed: check %v, first %v, second %v; operations %+v", x.name, check.Changed, first.Changed, second.Changed, second.Operations)
		case want && !byItself && len(check.Plan) == 0:
			t.Errorf("%s: the check has no plan: %+v", x.name, check)
		}
		if first.Primary != x.primary {
			t.Errorf("%s: it runs on %q, %+v", x.name, first.Primary, first.States)
		}
		for what, r := range map[string]*Reply{"check": check, "first": first} {
			if r.Diff == nil || what == "check" && byItself || !strings.Contains(r.Diff.Before, x.before) || !strings.Contains(r.Diff.After, x.after) {
				if !byItself {
					t.Errorf("%s, %s: difference\n%+v", x.name, what, r.Diff)
				}
			}
		}
		if !want && first.Diff.Before != first.Diff.After {
			t.Errorf("%s: a difference without a change: %+v", x.name, first.Diff)
		}
	}
}

// TestRemote: over TLS with both nodes named the task finds the one that it is for.
func TestRemote(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.start()
	addr := func(n string) string {
		data, err := os.ReadFile(s.path(n, "address"))
		must(t, err)
		return string(data)
	}
	remote := func(p m) *Reply {
		p["name"], p["identity"], p["trust"] = "web", s.path("alice", "alice.pem"), s.path("alice", "ca.crt")
		p["nodes"] = []m{{"name": "n1", "addresses": []string{addr("n1")}}, {"name": "n2", "addresses": addr("n2")}}
		return s.task(p)
	}
	ok := func(r *Reply, changed bool, primary string) *Reply {
		t.Helper()
		if r.Failed || r.Changed != changed || r.Primary != primary {
			t.Fatalf("%+v", r)
		}
		return r
	}
	ok(remote(m{"spec": webSpec, "primary": "n2", "state": "present"}), true, "")
	ok(remote(m{"state": "protected"}), true, "n2")
	ok(remote(m{"state": "switched-over", "primary": "n1"}), true, "n1")
	if r := remote(m{"state": "protected"}); r.Failed || !r.Protected || r.Primary != "n1" { // asked for, or waited for: the nodes do that by themselves
		t.Fatalf("%+v", r)
	}
	ok(remote(m{"state": "stopped", "force": true}), true, "")
	if r := ok(remote(m{"state": "absent"}), true, ""); len(r.Operations) != 2 {
		t.Errorf("absent on both: %+v", r.Operations)
	}
}

// TestRefused: what can't be done is said in one line, with what was tried, where, and what to do; nothing is changed.
func TestRefused(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.start()
	if r := s.task(m{"spec": webSpec, "state": "protected"}); r.Failed || !r.Changed || !r.Protected {
		t.Fatalf("%+v", r)
	}
	var was []string
	s.await("the history is written", func() bool {
		was = s.history()
		text := strings.Join(was, "\n")
		return strings.Contains(text, "n1 web state: protected") && strings.Contains(text, "n2 web state: secondary")
	})
	on2 := s.socket("n2")
	tests := []struct {
		name   string
		params m
		rc     int
		want   []string
	}{
		{"no such VM", m{"name": "db", "state": "started"}, api.ExitRefused, []string{"db: no such VM on this node", "give spec or spec_file"}},
		{"no daemon", m{"name": "web", "state": "started", "socket": "/nowhere/api.sock"}, 1, []string{"reach the node's daemon: /nowhere/api.sock", "next: is colod running there?"}},
		{"runs elsewhere", m{"name": "web", "state": "stopped", "socket": on2}, api.ExitRefused, []string{"web runs on n1, which this task does not reach", "name both nodes"}},
		{"absent while it runs", m{"name": "web", "state": "absent"}, api.ExitRefused, []string{"web is protected on n1", "state stopped first"}},
		{"another spec while it is protected", m{"state": "present", "spec": strings.Replace(webSpec, "256", "512", 1)}, api.ExitRefused, []string{"can't be changed while it is protected on n1", "unprotected"}},
		{"failover of a VM that is well", m{"name": "web", "state": "failed-over", "confirm": "web", "socket": on2}, api.ExitRefused,
			[]string{"failover web on n2", "not possible while secondary"}},
		{"switchover to nobody", m{"name": "web", "state": "switched-over", "primary": "n3"}, api.ExitUsage, []string{"primary", `"n3"`, "n1 n2"}},
	}
	for _, x := range tests {
		for _, check := range []bool{true, false} {
			p := maps.Clone(x.params)
			p["_ansible_check_mode"], p["timeout"] = check, 5
			r := s.task(p)
			if !r.Failed || r.Changed || r.RC != x.rc || strings.Contains(r.Msg, "\n") {
				t.Errorf("%s (check %v): %+v", x.name, check, r)
			}
			for _, w := range x.want {
				if !strings.Contains(r.Msg, w) {
					t.Errorf("%s (check %v): %q is not in %q", x.name, check, w, r.Msg)
				}
			}
		}
	}
	if now := s.history(); !slices.Equal(was, now) {
		t.Errorf("something was done:\n%s", strings.Join(now, "\n"))
	}
}

// TestTime: a task whose time is up says how far it got, and the next one waits for the rest.
func TestTime(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.start()
	if r := s.task(m{"spec": webSpec, "state": "protected"}); r.Failed {
		t.Fatalf("%+v", r)
	}
	if r := s.task(m{"name": "web", "state": "switched-over"}); r.Failed {
		t.Fatalf("%+v", r)
	}
	// It does not run on n1 now, and comes back only when somebody says so.
	r := s.task(m{"name": "web", "state": "unprotected", "socket": s.socket("n2")})
	if r.Failed {
		t.Fatalf("%+v", r)
	}
	begun := time.Now()
	r = s.task(m{"name": "web", "state": "protected", "socket": s.socket("n2"), "wait": "no"})
	if r.Failed || !r.Changed || !strings.Contains(r.Msg, "goes on; to wait for it: coloctl wait") {
		t.Errorf("without waiting: %+v", r)
	}
	r = s.task(m{"name": "web", "state": "protected", "socket": s.socket("n2"), "timeout": "30s"})
	if r.Failed || r.Changed || !r.Protected {
		t.Errorf("the rest: %+v after %s", r, time.Since(begun))
	}
}

// TestAlone: without its peer a VM is started, and its protection is waited for until the time is up.
func TestAlone(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.start("n1")
	if r := s.task(m{"spec": webSpec, "state": "started"}); r.Failed || !r.Changed || r.Primary != "n1" {
		t.Fatalf("%+v", r)
	}
	r := s.task(m{"name": "web", "state": "protected", "timeout": 1})
	if !r.Failed || r.Changed || r.RC != api.ExitTimeout || r.Msg != "web runs alone on n1, and no heartbeat comes from its peer: the time is up after 1s" {
		t.Errorf("%+v", r)
	}
	if r := s.task(m{"name": "web", "state": "switched-over", "timeout": 1}); !r.Failed || r.Changed || r.RC != api.ExitRefused ||
		!strings.Contains(r.Msg, "web runs alone on n1") || !strings.Contains(r.Msg, "bring it to state protected first") {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w: terminated", errInterrupted))
	data, err := json.Marshal(m{"name": "web", "state": "protected", "socket": s.socket("n1")})
	must(t, err)
	if r := Run(ctx, data); !r.Failed || r.RC != exitInterrupted || !strings.Contains(r.Msg, "interrupted: terminated") {
		t.Errorf("%+v", r)
	}
}

func TestProgress(t *testing.T) {
	op := api.Operation{Steps: []api.OpStep{{Name: "check the peer", Of: 9}, {Name: "copy the disks", Index: 2, Of: 9}},
		Progress: &colo.Progress{What: "vda", Done: 3 << 30, Total: 10 << 30, ETA: 90*time.Second + time.Millisecond}}
	if got := progress(op); got != "step 3 of 9, copy the disks, vda 30 % of 10GiB, 1m30s left" {
		t.Error(got)
	}
	if got := progress(api.Operation{}); got != "" {
		t.Error(got)
	}
}
