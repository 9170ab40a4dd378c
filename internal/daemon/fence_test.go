package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/colotest"
)

// agent is a fence agent whose device is a file; whoever is powered off leaves a mark there.
const agent = `#!/bin/sh
while IFS= read -r line; do
	case "$line" in
	plug=*) plug=${line#plug=} ;;
	action=*) action=${line#action=} ;;
	esac
done
case "$action" in
off) echo off >"$plug" ;;
status) [ -e "$plug" ] && exit 2; exit 0 ;;
monitor) ;;
metadata) echo '<?xml version="1.0" ?><resource-agent name="t"><parameters><parameter name="plug"/><parameter name="action"/></parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>' ;;
esac
`

// TestFencing loses a whole node: the other one powers it off before its copy goes on. While both answer nobody is powered off.
func TestFencing(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	must(t, os.WriteFile(s.path("fence_file"), []byte(agent), 0o700))
	launchers := map[string]*colotest.Launcher{"n1": colotest.NewLauncher(s.world), "n2": colotest.NewLauncher(s.world)}
	s.launcher = func(c *config.Config) colo.Launcher { return launchers[c.Node] }
	for i, name := range []string{"n1", "n2"} {
		text := s.config(name, i)
		from := strings.Index(text, "arbiter:")
		to := from + strings.Index(text[from:], "\n")
		fence := fmt.Sprintf("arbiter: {kind: fence, fence: {devices: [{agent: %s, options: {plug: %s}}]}}", s.path("fence_file"), s.path("off-"+[]string{"n2", "n1"}[i]))
		s.write(name, text[:from]+fence+text[to:])
	}
	n1, n2 := s.run("n1"), s.run("n2")
	n1.log.await(t, "the arbiter answers")
	n2.log.await(t, "the peer's daemon answers")
	n1.log.await(t, "the peer's daemon answers")
	c := s.client("n1")
	_, err := c.Create(ctx, api.SpecText{YAML: []byte(webYAML)})
	must(t, err)
	op, err := c.Start(ctx, "web", api.Request{})
	must(t, err)
	if _, err := c.Wait(ctx, op.ID, nil); err != nil {
		t.Fatal("start:", err)
	}
	op, err = c.Protect(ctx, "web", api.ResyncRequest{})
	must(t, err)
	if _, err := c.Wait(ctx, op.ID, nil); err != nil {
		t.Fatal("protect:", err)
	}
	awaitStatus(t, c, func(st colo.Status) bool { return st.Verdict.Protected })
	for _, name := range []string{"n1", "n2"} {
		if _, err := os.Stat(s.path("off-" + name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s was powered off: %v", name, err)
		}
	}
	// The host n1 dies: first its daemon, then its QEMU, without a word.
	must(t, n1.stop())
	launchers["n1"].Copy("web").Crash()
	st := awaitStatus(t, s.client("n2"), func(st colo.Status) bool { return st.State == colo.Solo })
	if _, err := os.Stat(s.path("off-n1")); err != nil {
		t.Errorf("n2 went on without proof (%+v): %v", st, err)
	}
	if !launchers["n2"].Copy("web").Joined() {
		t.Error("the survivor is silent")
	}
	if _, err := os.Stat(s.path("off-n2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the survivor was powered off: %v", err)
	}
}

// TestFailureOfOnePart: a daemon that loses a part that must not end ends too, with the reason, so that the service manager starts it again.
func TestFailureOfOnePart(t *testing.T) {
	d := &node{fatal: make(chan error, 1)}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { d.fail(fmt.Errorf("%d", i)) })
	}
	wg.Wait()
	select {
	case <-d.fatal:
	case <-time.After(time.Second):
		t.Error("no reason")
	}
}
