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
	follow := cc.Bool("follow")
	vm := cc.Args().First()
	q := api.EventQuery{VM: vm, Kinds: cc.StringSlice("kind"), Once: !follow}
	if !follow || cc.Bool("all") {
		q.After = "0"
	}
	p := &eventPrinter{cc: cc}
	ctx, cancel := context.WithCancel(cc.Context)
	defer cancel()
	errs := s.Each(func(_ int, t *target) error {
		err := t.Events(ctx, q, func(e api.StreamEvent) error { return p.take(t, e, follow) }, func(err error) {
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
	if err := s.AllFailed(errs); err != nil {
		return attempt(err, "events of", cc.Args().First(), nil)
	}
	for i, err := range errs {
		if err != nil {
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: events of %s: %v\n", s.Nodes[i], err)
		}
	}
	if vm != "" && len(p.held) == 0 && len(q.Kinds) == 0 {
		if _, err := s.Look(cc.Context, vm); err != nil { // nothing was noticed: is there such a VM?
			return attempt(err, "events of", vm, nil)
		}
	}
	return p.flush()
}

// eventKinds are the kinds of events that daemons of this version know.
var eventKinds = []string{"backup", "conflict", "decision", "disk", "overlays", "peer", "progress", "record", "recovery", "resync", "state", "step", "verify"}

// writeError is of stdout.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// eventPrinter prints the events of all nodes: at once when they are followed, otherwise by their time when all are there.
type eventPrinter struct {
	cc   *cli.Context
	mu   sync.Mutex
	held []nodeEvent
}

func (p *eventPrinter) take(t *target, e api.StreamEvent, now bool) error {
	n := nodeEvent{Node: t.String(), ID: e.ID, Gap: e.Gap}
	if e.Gap == nil {
		n.Node, n.NumberedEvent = e.Event.Node, &e.Event
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !now {
		p.held = append(p.held, n)
		return nil
	}
	return p.print(n)
}

func (p *eventPrinter) print(n nodeEvent) error {
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

func (p *eventPrinter) flush() error {
	slices.SortStableFunc(p.held, func(a, b nodeEvent) int {
		if a.NumberedEvent == nil || b.NumberedEvent == nil {
			return 0
		}
		return a.Time.Compare(b.Time)
	})
	for _, n := range p.held {
		if err := p.print(n); err != nil {
			return err
		}
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
