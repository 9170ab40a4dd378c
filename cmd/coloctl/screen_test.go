package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testNow = time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)

// at makes a half as a node would answer; a protected or secondary copy has a good verdict.
func at(node string, s colo.State) half {
	st := &colo.Status{VM: "web", Node: node, State: s, PeerAlive: true, Verdict: colo.Verdict{Reason: string(s)}}
	if s == colo.Protected || s == colo.Secondary {
		st.Verdict = colo.Verdict{Protected: true}
	}
	return half{Node: node, Status: st, Target: &target{Name: node}}
}

func but(h half, change func(*colo.Status)) half {
	change(h.Status)
	return h
}

var errSilent = errors.New("timeout")

func mute(node string, err error) half {
	return half{Node: node, Err: err, Error: err.Error(), Target: &target{Name: node}}
}

func TestReplicationText(t *testing.T) {
	for want, r := range map[string]colo.Replication{
		"encrypted, by link0 and link1 at once":      {Encrypted: true, MPTCP: true, Links: []string{"link0", "link1"}},
		"encrypted, by link0 alone":                  {Encrypted: true, Links: []string{"link0"}},
		"encrypted, by link1 alone, others can join": {Encrypted: true, MPTCP: true, Links: []string{"link1"}},
		"NOT encrypted, no link carries all of it":   {Links: []string{}},
	} {
		if got := replicationText(&r); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

func TestVerifyCell(t *testing.T) {
	for want, r := range map[string]state.Verify{
		"64MiB equal, 2s ago":                           {Compared: 64 << 20},
		"64KiB of 64MiB DIFFER, 2s ago":                 {Compared: 64 << 20, Differed: 64 << 10},
		"64KiB differed and were copied again, 2s ago":  {Compared: 64 << 20, Differed: 64 << 10, Repaired: true},
		"broken off after 64MiB: the peer went, 2s ago": {Compared: 64 << 20, Error: "the peer went"},
	} {
		r.Ended = testNow.Add(-2 * time.Second)
		if got := verifyCell(&r, testNow); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

// full is a half of a VM with two disks.
func full(h half, since time.Duration) half {
	return but(h, func(s *colo.Status) {
		s.Peer = map[string]string{"alpha": "beta", "beta": "alpha"}[s.Node]
		s.Since, s.Generation, s.Members, s.PID = testNow.Add(-since), 7, []string{"alpha", "beta"}, 4711
		s.Disks = []colo.DiskStatus{{Name: "vda", Size: 20 << 30, InSync: true, Generation: 7}, {Name: "vdb", Size: 100 << 30, InSync: true, Generation: 7}}
	})
}

func testNode(name, peer string) nodeReport {
	return nodeReport{Node: name, Status: &api.NodeStatus{
		Info: colo.NodeInfo{Name: name, QEMU: "11.1.3", Accel: "kvm"}, Version: "1.0.0", Arbiter: "witness",
		Peer: &colo.PeerStatus{Info: colo.NodeInfo{Name: peer}, State: "alive", Links: []colo.LinkStatus{
			{Name: "repl0", Up: true, RTT: 312 * time.Microsecond, Missing: 2},
			{Name: "repl1", Up: true, RTT: 290 * time.Microsecond},
		}},
	}}
}

var testNICs = []colo.NICSpec{{Name: "net0", Bridge: "br0"}, {Name: "net1", Bridge: "br-storage"}}

func protectedReport() *report {
	a := full(at("alpha", colo.Protected), 3*time.Hour+12*time.Minute)
	a.Status.Checkpoints = colo.CheckpointStats{Count: 123456, PauseP50: 4100 * time.Microsecond, PauseP99: 12 * time.Millisecond, Last: testNow.Add(-80 * time.Millisecond)}
	a.Status.Replication = &colo.Replication{Encrypted: true, Connections: 6, MPTCP: true, Links: []string{"repl0", "repl1"}}
	a.Status.Verify = &state.Verify{Ended: testNow.Add(-49 * time.Hour), Compared: 120 << 30}
	b := full(at("beta", colo.Secondary), 3*time.Hour+12*time.Minute)
	return &report{Time: testNow, Nodes: []nodeReport{testNode("alpha", "beta"), testNode("beta", "alpha")},
		VMs: []vmReport{{VM: "web", Protected: true, NICs: testNICs, Halves: []half{a, b}, Rate: 10.7}}}
}

func syncingReport() *report {
	a := full(at("alpha", colo.Syncing), 42*time.Second)
	a.Status.Members = []string{"alpha"}
	a.Status.Plan = &colo.PlanStatus{Kind: "protect", Step: "copy the disks", Index: 2, Steps: 9}
	a.Status.Progress = &colo.Progress{What: "copying the disks", Done: 43e9, Total: 120e9, Rate: 512e6, ETA: 150 * time.Second}
	b := full(at("beta", colo.Standby), 42*time.Second)
	b.Status.Generation, b.Status.Members = 6, []string{"alpha", "beta"}
	b.Status.Disks[0].InSync, b.Status.Disks[0].Generation = false, 6
	b.Status.Disks[1].InSync, b.Status.Disks[1].Generation = false, 0
	r := protectedReport()
	r.Nodes[1].Status.Peer.Links[1] = colo.LinkStatus{Name: "repl1", Error: "listen udp 10.1.0.2:7788: bind: cannot assign requested address"}
	v := both.Judge([]half{a, b})
	r.VMs = []vmReport{{VM: "web", Reason: v.Reason, NICs: testNICs, Halves: []half{a, b}}}
	return r
}

func lostReport() *report {
	a := full(at("alpha", colo.Solo), 49*time.Hour)
	a.Status.PeerAlive, a.Status.Outlook = false, ""
	a.Status.LastError = "protect: prepare the standby: peer unreachable: dial tcp 192.0.2.2:7443: connect: no route to host, and some more words that make it long"
	b := mute("beta", errSilent)
	one := testNode("alpha", "beta")
	one.Status.Arbiter = "none"
	one.Status.Peer.State = "lost"
	one.Status.Peer.Links[0].Up, one.Status.Peer.Links[1].Up = false, false
	one.Status.Peer.Links[1].WrongKey = 3
	stopped := full(at("alpha", colo.Stopped), time.Minute)
	stopped.Status.PID = 0
	stopped.Status.GivenUp = "given up after 5 failures within 10m0s, a person is needed: starting it: vda.qcow2 is in use by another process"
	halves := []half{a, b}
	return &report{Time: testNow, Nodes: []nodeReport{one, {Node: "beta", Error: "beta: the node's daemon does not answer: 192.0.2.2:7443: connect: no route to host"}},
		VMs: []vmReport{
			{VM: "a-very-long-name-of-a-vm", Reason: both.Judge([]half{stopped}).Reason, Halves: []half{stopped, mute("beta", colo.ErrNoVM)}},
			{VM: "web", Reason: both.Judge(halves).Reason, NICs: testNICs, Halves: halves},
		}}
}

func TestScreen(t *testing.T) {
	slow := testNode("alpha", "beta")
	slow.Status.Info.Accel = "tcg"
	reports := map[string]*report{"protected": protectedReport(), "syncing": syncingReport(), "lost": lostReport(), "nothing": {Time: testNow, Nodes: []nodeReport{slow}}}
	for name, r := range reports {
		t.Run(name, func(t *testing.T) {
			got := screen(r)
			lines := strings.Split(got, "\n")
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > screenWidth {
					t.Errorf("%d columns: %s", n, l)
				}
				if strings.TrimRight(l, " ") != l {
					t.Errorf("blanks at the end of %q", l)
				}
			}
			if len(r.VMs) == 1 && len(lines) > 24 {
				t.Errorf("%d lines", len(lines))
			}
			for i, v := range r.VMs {
				if len(r.VMs) == 1 && !strings.HasPrefix(lines[i], v.VM+": ") {
					t.Errorf("line %d does not begin with the verdict: %q", i, lines[i])
				}
			}
			golden(t, "status-"+name+".golden", got)
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, diff)
	}
}

func TestDiskCell(t *testing.T) {
	disk := func(s colo.State, generation, of uint64, inSync bool) *colo.Status {
		return &colo.Status{State: s, Generation: generation, Disks: []colo.DiskStatus{{Name: "vda", Size: 1 << 30, InSync: inSync, Generation: of}}}
	}
	for _, tt := range []struct {
		s    *colo.Status
		want string
	}{
		{disk(colo.Solo, 3, 2, true), "1GiB, current"},
		{disk(colo.Secondary, 3, 3, true), "1GiB, current"},
		{disk(colo.Stopped, 3, 3, true), "1GiB, current"},
		{disk(colo.Stopped, 2, 2, true), "1GiB, stale, of generation 2"},
		{disk(colo.Outdated, 3, 2, true), "1GiB, stale, of generation 2"},
		{disk(colo.Standby, 3, 2, true), "1GiB, stale, of generation 2"},
		{disk(colo.Stopped, 3, 2, false), "1GiB, stale, of generation 2"},
		{disk(colo.Standby, 1, 0, false), "1GiB, never equal"},
		{&colo.Status{State: colo.Stopped}, "none"},
	} {
		if got := diskCell(tt.s, "vda", 3); got != tt.want {
			t.Errorf("%s, generation %d: %q, want %q", tt.s.State, tt.s.Generation, got, tt.want)
		}
	}
}

func TestCheckpointRate(t *testing.T) {
	now := protectedReport().VMs[0]
	s := now.Halves[0].Status
	s.Checkpoints.Count, s.Since, s.Checkpoints.Last = 100, testNow, testNow.Add(10*time.Second)
	if got := checkpointRate(&now, nil); got != 10 {
		t.Errorf("since the beginning: %v", got)
	}
	later := *s
	later.Checkpoints.Count, later.Checkpoints.Last = 104, testNow.Add(12*time.Second)
	after := vmReport{VM: "web", Halves: []half{{Node: "alpha", Status: &later}}}
	if got := checkpointRate(&after, &now); got != 2 {
		t.Errorf("since the last look: %v", got)
	}
	if got := checkpointRate(&vmReport{Halves: []half{at("alpha", colo.Solo)}}, nil); got != 0 {
		t.Errorf("without checkpoints: %v", got)
	}
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "0s"}, {0, "0s"}, {312 * time.Microsecond, "310µs"}, {4149 * time.Microsecond, "4.1ms"}, {80 * time.Millisecond, "80ms"}, {333333 * time.Microsecond, "333ms"}, {1234 * time.Millisecond, "1.2s"},
		{75 * time.Second, "1m15s"}, {3*time.Hour + 12*time.Minute + 20*time.Second, "3h12m"}, {47 * time.Hour, "47h0m"}, {49 * time.Hour, "2 days"}, {200 * 24 * time.Hour, "200 days"},
	} {
		if got := short(tt.d); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.d, got, tt.want)
		}
	}
	if got := fold("aa bb cccccccc dd", 5); cmp.Diff([]string{"aa bb", "ccccc", "ccc", "dd"}, got) != "" {
		t.Errorf("fold: %q", got)
	}
	if got := fit("äöü  äöü", 6); got != "äöü..." {
		t.Errorf("fit: %q", got)
	}
	if got := bar(5, 10, 4) + bar(20, 10, 4) + bar(0, 0, 4) + bar(-1, 10, 4); got != "[##..][####][....]" {
		t.Errorf("bar: %q", got)
	}
	if got := bytesText(999) + " " + bytesText(1500) + " " + bytesText(43e9); got != "999 B 1.5 kB 43 GB" {
		t.Errorf("bytes: %q", got)
	}
}
