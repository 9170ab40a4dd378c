package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/state"
)

// Widths of the status screen: a name and two halves.
const (
	screenWidth = 80
	nameWidth   = 16
	halfWidth   = 31
)

// screen draws a report: the verdicts first, then both halves of everything.
func screen(r *report) string {
	var b strings.Builder
	if len(r.VMs) == 0 {
		b.WriteString("no VMs\n")
	}
	for _, v := range r.VMs {
		for i, l := range fold(verdictLine(v.VM, colo.Verdict{Protected: v.Protected, Reason: v.Reason}), screenWidth-2) {
			if i > 0 {
				l = "  " + l
			}
			b.WriteString(l + "\n")
		}
	}
	for _, v := range r.VMs {
		b.WriteString("\n")
		v.draw(&b, r.Time)
	}
	b.WriteString("\n")
	drawNodes(&b, r)
	return b.String()
}

// line writes a name and its two halves.
func line(b *strings.Builder, name string, cells ...string) {
	if r := []rune(name); len(r) >= nameWidth {
		name = string(r[:nameWidth-4]) + "..."
	}
	text := fmt.Sprintf("%-*s", nameWidth, name)
	for _, c := range cells {
		text += fmt.Sprintf(" %-*s", halfWidth, fit(c, halfWidth))
	}
	b.WriteString(strings.TrimRight(text, " ") + "\n")
}

// wide writes a name and a text that goes on in the next lines.
func wide(b *strings.Builder, name, text string, most int) {
	lines := fold(text, screenWidth-1-nameWidth-1)
	if len(lines) > most {
		lines = lines[:most]
		lines[most-1] = fit(lines[most-1]+" ...", screenWidth-1-nameWidth-1)
	}
	for i, l := range lines {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(b, "%-*s %s\n", nameWidth, name, l)
	}
}

// half calls cell for each half that is known.
func (v *vmReport) each(cell func(*colo.Status) string) []string {
	out := make([]string, len(v.Halves))
	for i, h := range v.Halves {
		if h.Has() {
			out[i] = cell(h.Status)
		}
	}
	return out
}

func (v *vmReport) draw(b *strings.Builder, now time.Time) {
	heads := make([]string, len(v.Halves))
	for i, h := range v.Halves {
		heads[i] = h.Node
	}
	line(b, v.VM, heads...)
	states := v.each(func(s *colo.Status) string {
		return fmt.Sprintf("%s for %s", s.State, short(now.Sub(s.Since).Round(time.Second)))
	})
	for i, h := range v.Halves {
		switch {
		case h.Has():
		case errors.Is(h.Err, colo.ErrNoVM):
			states[i] = "does not know it"
		default:
			states[i] = "no answer"
		}
	}
	line(b, "  state", states...)
	line(b, "  qemu", v.each(func(s *colo.Status) string {
		if s.PID == 0 {
			return "none"
		}
		return fmt.Sprintf("process %d", s.PID)
	})...)
	line(b, "  generation", v.each(func(s *colo.Status) string {
		return fmt.Sprintf("%d: %s", s.Generation, strings.Join(s.Members, ", "))
	})...)
	newest := v.newest()
	for _, name := range v.diskNames() {
		line(b, "  disk "+name, v.each(func(s *colo.Status) string { return diskCell(s, name, newest) })...)
	}
	if slices.ContainsFunc(v.Halves, func(h both.Half) bool { return h.Has() && h.Status.Overlays != nil }) {
		line(b, "  overlays", v.each(func(s *colo.Status) string { return overlayCell(s.Overlays) })...)
	}
	if s := v.primary(); s != nil && s.Verify != nil {
		wide(b, "  verified", verifyCell(s.Verify, now), 2)
	}
	for _, n := range v.NICs {
		line(b, "  nic "+n.Name, v.each(func(s *colo.Status) string { return nicCell(s.State, n) })...)
	}
	if s := v.primary(); s != nil {
		wide(b, "  checkpoints", checkpointText(s, v.Rate), 2)
	}
	if s := v.primary(); s != nil && s.Replication != nil {
		wide(b, "  replication", replicationText(s.Replication), 2)
	}
	for _, h := range v.Halves {
		if h.Has() {
			drawDoing(b, h.Status)
		}
	}
}

// drawDoing writes what a node is about with a VM, and what went wrong last.
func drawDoing(b *strings.Builder, s *colo.Status) {
	if p := s.Plan; p != nil {
		wide(b, "  doing", fmt.Sprintf("%s: %s %d/%d: %s", s.Node, p.Kind, p.Index+1, p.Steps, p.Step), 1)
	}
	if p := both.ProgressNow(s); p != nil {
		wide(b, "  progress", progressText(p, 12), 2)
	}
	off := offlineText(s)
	if off != "" {
		wide(b, "  offline", off, 4)
	}
	if s.GivenUp != "" {
		wide(b, "  given up", s.Node+": "+s.GivenUp, 3)
	} else if off != "" && s.PID == 0 { // nothing is begun here with a half that is out of service, whatever the node waits for
	} else if s.Outlook != "" {
		wide(b, "  next", s.Node+": "+s.Outlook, 2)
	}
	if s.LastError != "" && s.State != colo.Protected && s.State != colo.Secondary {
		wide(b, "  last error", s.Node+": "+s.LastError, 2)
	}
}

func (v *vmReport) diskNames() []string {
	var out []string
	for _, h := range v.Halves {
		if !h.Has() {
			continue
		}
		for _, d := range h.Status.Disks {
			if !slices.Contains(out, d.Name) {
				out = append(out, d.Name)
			}
		}
	}
	return out
}

// newest is the highest generation that any half is of.
func (v *vmReport) newest() uint64 {
	var g uint64
	for _, h := range v.Halves {
		if h.Has() {
			g = max(g, h.Status.Generation)
		}
	}
	return g
}

// verifyCell is what the last comparison of both halves has found.
func verifyCell(r *state.Verify, now time.Time) string {
	found := colo.Size(r.Compared).String() + " equal"
	switch {
	case r.Error != "":
		found = "broken off after " + colo.Size(r.Compared).String() + ": " + r.Error
	case r.Repaired:
		found = colo.Size(r.Differed).String() + " differed and were copied again"
	case r.Differed > 0:
		found = colo.Size(r.Differed).String() + " of " + colo.Size(r.Compared).String() + " DIFFER"
	}
	return found + ", " + short(now.Sub(r.Ended)) + " ago"
}

// diskCell is one half of a disk. A node remembers that its disks were whole in some generation; whether that is the last one it can't know alone.
func diskCell(s *colo.Status, name string, newest uint64) string {
	i := slices.IndexFunc(s.Disks, func(d colo.DiskStatus) bool { return d.Name == name })
	if i < 0 {
		return "none"
	}
	return s.Disks[i].Size.String() + ", " + halfState(s, s.Disks[i], newest)
}

// halfState is how a half of a disk stands, in the words of status and of disk list.
func halfState(s *colo.Status, d colo.DiskStatus, newest uint64) string {
	switch {
	case d.ReadOnly:
		return mediumCell(d)
	case d.Offline != "":
		return "offline"
	case both.RunsAsPrimary(s.State), d.InSync && s.State != colo.Outdated && s.State != colo.Standby && s.Generation == newest:
		return "current"
	case d.Generation == 0:
		return "never equal"
	}
	return fmt.Sprintf("stale, of generation %d", d.Generation)
}

// offlineText says why halves on a node are out of service, and how that ends; empty if none is.
func offlineText(s *colo.Status) string {
	var out []string
	for _, d := range s.Disks {
		if d.Offline != "" {
			out = append(out, fmt.Sprintf("%s's half of %s: %s; until: coloctl disk online %s %s %s", s.Node, d.Name, d.Offline, s.VM, d.Name, s.Node))
		}
	}
	return strings.Join(out, "; ")
}

// mediumCell is a read-only disk on one node.
func mediumCell(d colo.DiskStatus) string {
	switch {
	case !d.InSync:
		return "read-only, missing"
	case d.SHA256 != "":
		return "read-only, sha256 " + d.SHA256[:12]
	}
	return "read-only"
}

// overlayCell is how much a secondary keeps between checkpoints.
func overlayCell(o *colo.OverlayStatus) string {
	switch {
	case o == nil:
		return "none"
	case o.Max > 0:
		return fmt.Sprintf("%s of %s, most %s", o.Size, o.Max, o.Most)
	}
	return fmt.Sprintf("%s, most %s", o.Size, o.Most)
}

// nicCell is one half of a NIC. What a NIC does follows from the state: see the package netcompare.
func nicCell(s colo.State, n colo.NICSpec) string {
	switch s {
	case colo.Protected:
		return n.Bridge + ", compared"
	case colo.Secondary:
		return n.Bridge + ", compared, silent"
	case colo.Arbitrating, colo.FailingOver:
		return "cut off " + n.Bridge
	case colo.Solo, colo.Syncing, colo.Attaching, colo.Detaching, colo.SwitchingOver, colo.Stopping:
		return n.Bridge
	}
	return "none"
}

func replicationText(r *colo.Replication) string {
	text := "NOT encrypted"
	if r.Encrypted {
		text = "encrypted"
	}
	switch {
	case len(r.Links) == 0:
		text += ", no link carries all of it"
	case len(r.Links) > 1:
		text += ", by " + strings.Join(r.Links, " and ") + " at once"
	case r.MPTCP:
		text += ", by " + r.Links[0] + " alone, others can join"
	default:
		text += ", by " + r.Links[0] + " alone"
	}
	return text
}

func checkpointText(s *colo.Status, rate float64) string {
	c := s.Checkpoints
	text := fmt.Sprintf("%d", c.Count)
	if rate > 0 {
		text += fmt.Sprintf(", %.1f a second", rate)
	}
	if c.PauseP50 > 0 {
		text += fmt.Sprintf(", pause %s (p99 %s)", short(c.PauseP50), short(c.PauseP99))
	}
	return text
}

// drawNodes writes what lies between the nodes: links and arbiter.
func drawNodes(b *strings.Builder, r *report) {
	var heads, daemons, arbiters, peers []string
	var links []string
	for _, n := range r.Nodes {
		heads = append(heads, n.Node)
		if n.Status == nil {
			daemons, arbiters, peers = append(daemons, "no answer"), append(arbiters, ""), append(peers, "")
			continue
		}
		i := n.Status.Info
		daemons = append(daemons, fmt.Sprintf("QEMU %s %s, %s", i.QEMU, i.Accel, n.Status.Version))
		arbiters = append(arbiters, arbiterCell(n.Status.Arbiter, r, n.Node))
		p := n.Status.Peer
		if p == nil {
			peers = append(peers, "none")
			continue
		}
		peers = append(peers, fmt.Sprintf("%s %s", p.Info.Name, peerState(p.State)))
		for _, l := range p.Links {
			if !slices.Contains(links, l.Name) {
				links = append(links, l.Name)
			}
		}
	}
	line(b, "nodes", heads...)
	line(b, "  daemon", daemons...)
	if slices.ContainsFunc(r.Nodes, func(n nodeReport) bool { return n.Status != nil && n.Status.Info.Accel == "tcg" }) {
		wide(b, "", "tcg is for trials only: a standby may run code that the guest has replaced", 2)
	}
	for i, n := range r.Nodes {
		if n.Error != "" {
			wide(b, "", r.Nodes[i].Error, 2)
		}
	}
	line(b, "  peer", peers...)
	for _, name := range links {
		cells := make([]string, len(r.Nodes))
		for i, n := range r.Nodes {
			if n.Status != nil && n.Status.Peer != nil {
				cells[i] = linkCell(n.Status.Peer.Links, name)
			}
		}
		line(b, "  link "+name, cells...)
	}
	line(b, "  arbiter", arbiters...)
}

func peerState(s heartbeat.PeerState) string {
	if s == heartbeat.Unknown {
		return "not heard yet"
	}
	return string(s)
}

func linkCell(links []colo.LinkStatus, name string) string {
	i := slices.IndexFunc(links, func(l colo.LinkStatus) bool { return l.Name == name })
	if i < 0 {
		return "not configured"
	}
	l := links[i]
	switch {
	case l.Error != "":
		return "down: " + l.Error
	case !l.Up && l.WrongKey > 0:
		return "down: peer has another key"
	case !l.Up:
		return "down"
	}
	text := "up"
	if l.RTT > 0 {
		text += ", " + short(l.RTT)
	}
	if l.Far {
		text += ", farther than max-link-rtt"
	}
	if l.Missing > 0 {
		text += fmt.Sprintf(", %d lost", l.Missing)
	}
	return text
}

// arbiterCell is the kind of arbiter, and whether it answered: a node asks it before it calls a VM protected.
func arbiterCell(kind string, r *report, node string) string {
	if kind == "none" || kind == "" {
		return "none: a person decides"
	}
	for _, v := range r.VMs {
		for _, h := range v.Halves {
			if h.Node != node || !h.Has() {
				continue
			}
			switch verdict := h.Status.Verdict; {
			case verdict.Protected:
				return kind + ", answers"
			case strings.Contains(verdict.Reason, "arbiter does not answer"):
				return kind + ", no answer"
			}
		}
	}
	for _, n := range r.Nodes {
		switch {
		case n.Node != node || n.Arbiter == nil:
		case n.Arbiter.OK:
			return kind + ", answers"
		default:
			return kind + ", no answer"
		}
	}
	return kind + ", not asked"
}
