package sim

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	mutants = flag.Bool("sim.mutants", os.Getenv("CI") == "true", "take each guard off the engine and see that the simulator notices")
	reach   = flag.Int("sim.reach", 20000, "schedules in which a mutant must be noticed")
	one     = flag.String("sim.mutant", "", "only this one")
)

// mutant takes one guard off the engine: in a file below colo, from is replaced by to. It is compiled into a simulator of its own, so that the
// engine itself needs no switches.
type mutant struct {
	name     string
	file     string
	from, to string
}

var guards = []mutant{
	{
		"cut the tap before the claim", "plan_survive.go",
		"if c := m.current(); c != nil {\n\t\t\tif err := c.Cut(ctx); err != nil {", "if c := m.current(); c == nil {\n\t\t\tif err := c.Cut(ctx); err != nil {",
	},
	{
		"claim by compare-and-set", "arbiter/arbiter.go",
		"if next.Generation-1 == current.Generation && current.Has(next.By) {", "if true {",
	},
	{
		"see that the own copy lives before a claim", "plan_survive.go",
		"	if err := c.Alive(actx); err != nil {", "	if err := c.Alive(actx); err != nil && false {",
	},
	{
		"a report of an older generation is ignored", "serve.go",
		"if rec, _ := m.info(); r.Generation >= rec.Generation {", "{",
	},
	{
		"the disks of a promoted secondary count as incomplete", "plan_survive.go",
		"noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0))", "noted <- nil",
	},
	{
		"an incomplete disk is not started from", "plan_survive.go",
		"if names := incomplete(rec, spec); len(names) > 0 {", "if names := incomplete(rec, spec); len(names) > 99 {",
	},
	{
		"let the primary speak first", "plan_survive.go",
		"	for told := false; ; {", "	if true {\n\t\treturn nil\n\t}\n\tfor told := false; ; {",
	},
	{
		"a yield is stored before the peer is told", "plans.go",
		"	if err := m.updateNow(ctx, func(v *state.VM) { v.Members = []string{info.Name} }); err != nil {", "	if info.Name == \"\" {",
	},
	{
		"the peer counts only once COLO is proven", "plan_protect.go",
		"				return m.syncDisks(ctx, c, way, peer, token, reply.Endpoint)",
		"				if _, err := m.admit(ctx, to.Name); err != nil {\n\t\t\t\t\treturn err\n\t\t\t\t}\n\t\t\t\treturn m.syncDisks(ctx, c, way, peer, token, reply.Endpoint)",
	},
	{
		"a bitmap counts only for the disks it is about", "resync.go",
		"case rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:", "case covered:",
	},
	{
		"a resync goes on only where nothing else has written", "resync.go",
		"reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum) && len(r.Compared) > 0:", "len(r.Compared) > 0:",
	},
	{
		"a bitmap resync is on record before it sends anything", "resync.go",
		"		v.Base = nil\n", "",
	},
	{
		"a start asks whether the other copy runs", "plan_survive.go",
		"	if err != nil || aloneIn(rec, m.n.cfg.Name) {", "	if err != nil || !aloneIn(rec, \"\") {",
	},
	{
		"only a peer that is a secondary ends an arbitration", "plan_survive.go",
		"return err == nil && there.State == Secondary", "_, _ = there, err\n\treturn true",
	},
	{
		"a link dead in one direction counts as lost", "watch_peer.go",
		"case ev.Kind == heartbeat.PathDown &&", "case false &&",
	},
	{
		"what a plan is told is remembered", "machine.go",
		"m.missed = append(m.missed,", "_ = append(m.missed,",
	},
	{
		"a switchover silences this copy first", "plan_protect.go",
		"Do:   func(ctx context.Context) error { return c.Cut(ctx) },", "Do:   func(ctx context.Context) error { return nil },",
	},
	{
		"a fenced copy is killed", "plans.go",
		"if err := c.Kill(ctx); err != nil {", "if err := error(nil); err != nil {",
	},
	{
		"the peer is told of a death after it", "plans.go",
		"	steps := []Step{{Name: \"end this copy\", Do: m.discard},", "	steps := []Step{{Name: \"too early\", Do: m.yield}, {Name: \"end this copy\", Do: m.discard},",
	},
	{
		"an arbitration goes on after a restart", "resume.go",
		"	case phase == Arbitrating, phase == Detaching,", "	case phase == Detaching,",
	},
	{
		"a loser never goes on", "plan_survive.go",
		"return got, fmt.Errorf(\"%w: generation %d belongs to %v\", errLost, got.Generation, got.Members)", "return got, nil",
	},
}

// TestMutants takes the guards off one at a time. A simulator that does not notice would not have found the mistake either.
func TestMutants(t *testing.T) {
	if !*mutants && *one == "" {
		t.Skip("needs minutes: -sim.mutants")
	}
	for _, m := range guards {
		if *one != "" && !strings.Contains(m.name, *one) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			binary := m.build(t)
			begun := time.Now()
			f := play(t, binary, 1, *reach, 0, func(f *found) bool { return len(f.bad) > 0 })
			for seed, v := range f.bad {
				if r := Run(t, Generate(seed), false); r.Violation != nil {
					t.Errorf("seed %d: the engine as it is breaks a promise: %v", seed, r.Violation)
				}
				t.Logf("after %s: seed %d: %v", time.Since(begun).Round(time.Millisecond), seed, v)
			}
			if len(f.bad) == 0 {
				t.Errorf("not noticed in %d schedules %v", f.played, f.died)
			}
		})
	}
}

func (m mutant) build(t *testing.T) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(m.file)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.from); n != 1 {
		t.Fatalf("%s has %d times, not once, what this mutant changes; it must follow the engine: %s", m.file, n, m.from)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.from, m.to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "sim.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay="+list, "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}
