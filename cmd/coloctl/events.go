package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

func eventsCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "events", Usage: "print what the daemons have noticed since their start, of one VM or of all", Flags: []cli.Flag{
		&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "print what happens from now on, until interrupted"},
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "with --follow: begin with what is there"},
		&cli.StringSliceFlag{Name: "kind", Usage: "only of this `KIND`: state, step, progress, peer, disk, resync, ...; may be given more than once"},
	}, Action: withSite(events)}, operands{max: 1, usage: "[VM]"})
}

// nodeEvent is an event, or a gap, of a node.
type nodeEvent struct {
	Node string   `json:"node"`
	ID   string   `json:"id,omitempty"`
	Gap  *api.Gap `json:"gap,omitempty"`
	*api.NumberedEvent
}

func events(cc *cli.Context, s *site) error {
	for _, k := range cc.StringSlice("kind") {
		if !slices.Contains(eventKinds, k) {
			return usagef("--kind %q: expected one of %s", k, strings.Join(eventKinds, ", "))
		}
	}
	vm := cc.Args().First()
	q := api.EventQuery{VM: vm, Kinds: cc.StringSlice("kind")}
	p := &eventPrinter{cc: cc}
	if cc.Bool("follow") {
		return p.follow(s, q, cc.Bool("all"))
	}
	past, _, errs := s.pastEvents(cc.Context, q)
	if cc.Err() != nil {
		return context.Cause(cc.Context)
	}
	if err := s.AllFailed(errs); err != nil {
		return attempt(err, "events of", vm, nil)
	}
	for i, err := range errs {
		if err != nil {
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: events of %s: %v\n", s.Nodes[i], err)
		}
	}
	merged := mergeEvents(past)
	if vm != "" && len(merged) == 0 && len(q.Kinds) == 0 {
		if _, err := s.Look(cc.Context, vm); err != nil { // nothing was noticed: is there such a VM?
			return attempt(err, "events of", vm, nil)
		}
	}
	return p.print(merged...)
}

// pastEvents asks all nodes for the events that they still know, and returns them by node, with the id of each node's last.
func (s *site) pastEvents(ctx context.Context, q api.EventQuery) (past [][]nodeEvent, last []string, errs []error) {
	past, last = make([][]nodeEvent, len(s.Nodes)), make([]string, len(s.Nodes))
	q.After, q.Once = "0", true
	errs = s.Each(func(i int, t *target) error {
		last[i] = q.After
		return t.Events(ctx, q, func(e api.StreamEvent) error {
			past[i], last[i] = append(past[i], ofNode(t, e)), e.ID
			return nil
		}, nil)
	})
	return past, last, errs
}

// mergeEvents puts the events of all nodes into one order, by their time. Those of one node stay in its own order, whatever its clock did.
func mergeEvents(past [][]nodeEvent) []nodeEvent {
	var out []nodeEvent
	for {
		first := -1
		for i, of := range past {
			if len(of) > 0 && (first < 0 || of[0].before(&past[first][0])) {
				first = i
			}
		}
		if first < 0 {
			return out
		}
		out, past[first] = append(out, past[first][0]), past[first][1:]
	}
}

// before says whether an event is printed before another node's. A gap has no time: it stays right before what follows it.
func (e *nodeEvent) before(o *nodeEvent) bool {
	if e.NumberedEvent == nil || o.NumberedEvent == nil {
		return e.NumberedEvent == nil
	}
	return e.Time.Before(o.Time)
}

// follow prints events as they come, after those that are there if all are wanted, until it is interrupted.
func (p *eventPrinter) follow(s *site, q api.EventQuery, all bool) error {
	cc := p.cc
	begin := make([]string, len(s.Nodes))
	if all {
		var past [][]nodeEvent
		past, begin, _ = s.pastEvents(cc.Context, q) // who did not answer is asked again, from where it was
		if err := p.print(mergeEvents(past)...); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(cc.Context)
	defer cancel()
	errs := s.Each(func(i int, t *target) error {
		q := q
		q.After = begin[i]
		err := t.Events(ctx, q, func(e api.StreamEvent) error { return p.print(ofNode(t, e)) }, func(err error) {
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: events of %s: %v; trying again\n", t, err)
		})
		if errors.As(err, new(*writeError)) {
			cancel() // nobody reads any more
		}
		return err
	})
	var write *writeError
	if err := errors.Join(errs...); errors.As(err, &write) {
		return write
	}
	if cc.Err() != nil {
		return context.Cause(cc.Context)
	}
	return attempt(s.AllFailed(errs), "events of", q.VM, nil)
}

// eventKinds are the kinds of events that daemons of this version know.
var eventKinds = []string{"backup", "conflict", "decision", "disk", "overlays", "peer", "progress", "record", "recovery", "resync", "state", "step", "verify"}

// writeError is of stdout.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

func ofNode(t *target, e api.StreamEvent) nodeEvent {
	if e.Gap != nil {
		return nodeEvent{Node: t.String(), ID: e.ID, Gap: e.Gap}
	}
	return nodeEvent{Node: e.Event.Node, ID: e.ID, NumberedEvent: &e.Event}
}

// eventPrinter prints events, of all nodes at once.
type eventPrinter struct {
	cc *cli.Context
	mu sync.Mutex
}

func (p *eventPrinter) print(all ...nodeEvent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range all {
		if err := p.one(n); err != nil {
			return err
		}
	}
	return nil
}

func (p *eventPrinter) one(n nodeEvent) error {
	var err error
	switch f := format(p.cc); {
	case f != lab.FormatTable:
		err = lab.Encode(p.cc.App.Writer, f, n)
	case n.Gap != nil:
		_, err = fmt.Fprintf(p.cc.App.ErrWriter, "coloctl: %s: %s\n", n.Node, gapText(n.Gap))
	default:
		_, err = fmt.Fprintln(p.cc.App.Writer, hang(eventLine(n.NumberedEvent), eventIndent, widthOf(p.cc.App.Writer)))
	}
	if err != nil {
		return &writeError{err}
	}
	return nil
}

func gapText(g *api.Gap) string {
	if g.Missed > 0 {
		return plural(int(min(g.Missed, 1<<30)), "event") + " missing here; what is now: coloctl status"
	}
	return "the daemon was restarted; what is now: coloctl status"
}

// eventIndent is where an event's text goes on in the next line: behind the time.
const eventIndent = 14

// eventLine is an event in one line.
func eventLine(e *api.NumberedEvent) string {
	who := e.Node
	if e.VM != "" {
		who += " " + e.VM
	}
	text := e.Text
	switch e.Kind {
	case "state":
		text = string(e.State)
		if e.Text != "" {
			text += ": " + e.Text
		}
	case "progress":
		done, _ := e.Fields["done"].(float64)
		total, _ := e.Fields["total"].(float64)
		if total > 0 {
			text += fmt.Sprintf(": %s of %s", bytesText(int64(done)), bytesText(int64(total)))
		}
	}
	if e.Missed > 0 {
		text += fmt.Sprintf(" (%d lost before it)", e.Missed)
	}
	return fmt.Sprintf("%s  %-14s %-9s %s", e.Time.Local().Format("15:04:05.000"), who, e.Kind, strings.Join(strings.Fields(text), " "))
}

// sinceTime reads a time span back from now, or a time.
func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--since %q: expected a span such as 2h, or a time such as 2006-01-02 15:04", text)
}
