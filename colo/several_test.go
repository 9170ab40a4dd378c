package colo_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

func ranked(name string, priority int, mac string) *colo.Spec {
	s := &colo.Spec{Name: name, Memory: 64 << 20, Priority: priority, Disks: []colo.DiskSpec{{Name: "vda", File: name + ".raw", Size: 1 << 20}}}
	if mac != "" {
		s.NICs = []colo.NICSpec{{Name: "net0", Bridge: "br0", MAC: mac}}
	}
	return s
}

// TestAdmission: a VM that there is no room for is refused with the figures, on the node where it is made or started and on the one that is to protect it. One that has its room is not
// refused when it comes back. Two VMs can't have the same MAC address or image.
func TestAdmission(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.limits = map[string]colo.Limits{"n1": {Memory: 300 << 20, VCPUs: 3}, "n2": {Memory: 200 << 20}}
	p.powerOff()
	p.restart()
	ctx := t.Context()
	n1, n2 := p.nodes["n1"], p.nodes["n2"]
	must(t, n1.Create(ctx, ranked("web", 0, "52:54:00:00:00:01")))
	must(t, n1.Start(ctx, "web"))
	if c := n1.Capacity(); c.Reserved.Memory != 128<<20 || c.Reserved.VCPUs != 1 || len(c.VMs) != 1 {
		t.Errorf("reserved: %+v", c)
	}
	must(t, n1.Create(ctx, ranked("db", 0, "52:54:00:00:00:02")))
	must(t, n1.Start(ctx, "db"))
	err := n1.Create(ctx, ranked("mail", 0, "52:54:00:00:00:03"))
	var room *colo.NoRoomError
	if !errors.Is(err, colo.ErrNoRoom) || !errors.As(err, &room) || !strings.Contains(err.Error(), "128MiB (twice") || !strings.Contains(err.Error(), "of the 300MiB that n1 gives its VMs 256MiB are reserved") {
		t.Errorf("a third VM: %v", err)
	}
	lone := ranked("lone", 0, "52:54:00:00:00:04")
	lone.Memory, lone.Protection.Level, lone.VCPUs = 40<<20, colo.LevelNone, 2
	if err := n1.Create(ctx, lone); !errors.Is(err, colo.ErrNoRoom) || !strings.Contains(err.Error(), "virtual CPUs") {
		t.Errorf("too many CPUs: %v", err)
	}
	lone.VCPUs = 1
	must(t, n1.Create(ctx, lone))
	twin := ranked("twin", 0, "52:54:00:00:00:02")
	if err := n1.Create(ctx, twin); !errors.Is(err, colo.ErrMACTaken) || !strings.Contains(err.Error(), "db") {
		t.Errorf("a MAC address twice: %v", err)
	}
	twin = ranked("twin", 0, "52:54:00:00:00:05")
	twin.Disks[0].File = "./db.raw"
	if err := n1.Create(ctx, twin); !errors.Is(err, colo.ErrImageTaken) || !strings.Contains(err.Error(), "db's disk vda") {
		t.Errorf("an image twice: %v", err)
	}
	must(t, n1.Stop(ctx, "lone", colo.StopOptions{}))
	huge := *lone
	huge.Memory = 900 << 30
	if err := n1.Edit(ctx, "lone", &huge, ""); !errors.Is(err, colo.ErrNoRoom) {
		t.Errorf("more than the node gives: %v", err)
	}

	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	if err := n1.Protect(ctx, "db", colo.ProtectOptions{}); !errors.Is(err, colo.ErrNoRoom) || !strings.Contains(err.Error(), "n2 gives") {
		t.Errorf("the second VM on n2: %v", err)
	}
	if c := n2.Capacity(); len(c.VMs) != 1 || c.VMs[0].VM != "web" {
		t.Errorf("n2 keeps room for %+v", c.VMs)
	}
	must(t, n1.Switchover(ctx, "web"))
	p.await("n2", "web", atRest(colo.Solo, "n2"))
	must(t, n2.Protect(ctx, "web", colo.ProtectOptions{})) // n1 is full, and has kept its room
}

// TestStartOrder: after both hosts were off VMs are started one after the other, the highest priority first. One that can't be started holds nobody up.
func TestStartOrder(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	ctx := t.Context()
	for i, name := range []string{"a", "b", "c", "d"} {
		spec := ranked(name, []int{0, 10, 5, 7}[i], "")
		spec.Protection.Level = colo.LevelNone
		must(t, p.nodes["n1"].Create(ctx, spec))
		must(t, p.nodes["n1"].Start(ctx, name))
	}
	crash := func() {
		for _, name := range []string{"a", "b", "c", "d"} {
			if c := p.launchers["n1"].Copy(name); c != nil {
				c.Crash()
			}
		}
	}
	for _, broken := range []string{"", "d"} {
		p.recovery = &colo.Recovery{HoldDown: 50 * time.Millisecond, Attempts: 2}
		p.powerOff()
		crash()
		begun := time.Now()
		p.launchers["n1"].RefuseVM(broken, errors.New("no bridge"))
		p.open("n1")
		p.open("n2")
		_, err := colo.NewWire(p.nodes["n1"], p.nodes["n2"])
		must(t, err)
		want := []string{"b", "d", "c", "a"}
		if broken != "" {
			want = []string{"b", "c", "a"}
		}
		timeout, cancel := context.WithTimeout(ctx, 20*time.Second)
		for _, name := range want {
			_, err := p.nodes["n1"].Wait(timeout, name, func(s colo.Status) bool { return s.State == colo.Solo })
			must(t, err)
		}
		cancel()
		must(t, p.nodes["n1"].Close()) // all is in its history then
		entries, err := p.stores["n1"].History(state.Query{Since: begun})
		must(t, err)
		var began, runs []string
		for _, e := range entries {
			switch {
			case e.Kind != "state" || e.VM == broken:
			case strings.HasPrefix(e.Text, string(colo.Starting)):
				if len(began)-len(runs) > 1 { // what is seen of one may be written after the next has begun
					t.Errorf("%s is started while %v have been and %v run", e.VM, began, runs)
				}
				began = append(began, e.VM)
			case strings.HasPrefix(e.Text, string(colo.Solo)):
				runs = append(runs, e.VM)
			}
		}
		if !slices.Equal(began, want) {
			t.Errorf("started in the order %v, want %v", began, want)
		}
	}
}

// TestQueueInStatus: a VM that waits for its turn to become protected says so with its place, and the highest priority is next.
func TestQueueInStatus(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.resync = colo.ResyncLimits{Parallel: 1}
	p.powerOff()
	p.restart()
	ctx := t.Context()
	n1 := p.nodes["n1"]
	release := p.launchers["n1"].HoldSync()
	defer release()
	ends := make(chan error, 3)
	for i, name := range []string{"first", "low", "high"} {
		must(t, n1.Create(ctx, ranked(name, i, "")))
		must(t, n1.Start(ctx, name))
		go func() { ends <- n1.Protect(ctx, name, colo.ProtectOptions{}) }()
		_, err := n1.Wait(ctx, name, func(s colo.Status) bool {
			return s.Plan != nil && (i == 0 && s.Progress != nil || i > 0 && s.Outlook != "")
		})
		must(t, err)
	}
	for name, place := range map[string]int{"high": 1, "low": 2} {
		s, err := n1.Wait(ctx, name, func(s colo.Status) bool { return strings.Contains(s.Outlook, fmt.Sprintf("place %d ", place)) })
		must(t, err)
		if !strings.Contains(s.Outlook, "after first") {
			t.Errorf("%s says %q", name, s.Outlook)
		}
		if s, _ := n1.Status(ctx, name); s.Verdict.Protected || !strings.Contains(s.Verdict.Reason, "wait") {
			t.Errorf("%s: verdict %+v", name, s.Verdict)
		}
	}
	release()
	for range 3 {
		must(t, <-ends)
	}
	high, _ := n1.Status(ctx, "high")
	low, _ := n1.Status(ctx, "low")
	if !high.Since.Before(low.Since) || low.Outlook != "" {
		t.Errorf("high was protected at %s, low at %s; low's outlook: %q", high.Since, low.Since, low.Outlook)
	}
}
