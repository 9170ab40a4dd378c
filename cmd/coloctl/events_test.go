package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// TestEventKinds: --kind knows all kinds that the engine has.
func TestEventKinds(t *testing.T) {
	files, err := filepath.Glob("../../colo/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	kind := regexp.MustCompile(`[^a-zA-Z]Event\{[^}]*Kind: "([a-z-]+)"`)
	var found []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range kind.FindAllStringSubmatch(string(text), -1) {
			found = append(found, m[1])
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); !slices.Equal(found, eventKinds) {
		t.Errorf("in the engine: %q, known here: %q", found, eventKinds)
	}
}

// TestMergeEvents: the nodes' events are in one order by time, each node's in its own, and a gap stays where it was.
func TestMergeEvents(t *testing.T) {
	at := func(node string, seq uint64, second int) nodeEvent {
		return nodeEvent{Node: node, NumberedEvent: &api.NumberedEvent{Seq: seq, Event: colo.Event{Node: node, Time: testNow.Add(time.Duration(second) * time.Second)}}}
	}
	gap := nodeEvent{Node: "b", Gap: &api.Gap{Missed: 3}}
	var got []string
	for _, e := range mergeEvents([][]nodeEvent{
		{at("a", 1, 0), at("a", 2, 9), at("a", 3, 2), at("a", 4, 12)}, // its clock was set back
		{at("b", 1, 1), gap, at("b", 5, 10)},
		nil,
	}) {
		if e.Gap != nil {
			got = append(got, "gap")
			continue
		}
		got = append(got, fmt.Sprint(e.Node, e.Seq))
	}
	if want := []string{"a1", "b1", "gap", "a2", "a3", "b5", "a4"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
