package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
)

func nodeCommand(r rules) *cli.Command {
	one := operands{max: 1, usage: "[NODE]"}
	return group(&cli.Command{Name: "node", Usage: "the hosts", Subcommands: []*cli.Command{
		r.remote(&cli.Command{Name: "list", Usage: "list the nodes of the context", Action: withSite(nodeList)}, operands{}),
		r.remote(&cli.Command{Name: "show", Usage: "show a node: its daemon, QEMU, links, arbiter and health", Action: withSite(nodeShow)}, one),
		r.change(&cli.Command{Name: "balance", Usage: "switch protected VMs over so that they are spread over the nodes, or run where they prefer to", Action: withSite(nodeBalance)}, operands{}),
		r.remote(&cli.Command{Name: "safe-to-reboot", Usage: "does any VM stop when this node is rebooted now? Exit code 4 if so, 1 if it can't be asked", Action: withSite(nodeSafe)}, one),
	}})
}

func nodeList(cc *cli.Context, s *site) error {
	all := make([]nodeReport, len(s.Nodes))
	s.Each(func(i int, t *target) error {
		n, err := t.Node(cc.Context)
		if err != nil {
			all[i] = nodeReport{Node: t.String(), Error: err.Error()}
			return err
		}
		all[i] = nodeReport{Node: n.Info.Name, Status: &n}
		return nil
	})
	// The peer of a lone daemon is known by hearsay.
	if len(all) == 1 && all[0].Status != nil && all[0].Status.Peer != nil {
		p := all[0].Status.Peer
		all = append(all, nodeReport{Node: p.Info.Name, Error: fmt.Sprintf("%s, says %s", peerState(p.State), all[0].Node)})
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, all)
	}
	return nodeTable(cc.App.Writer, all)
}

func nodeTable(out io.Writer, all []nodeReport) error {
	w := table(out, "NODE", "DAEMON", "QEMU", "VMS", "PEER", "VERSIONS", "LINKS UP", "ARBITER")
	below := ""
	for _, n := range all {
		switch {
		case n.Status != nil:
		case w.width > 0: // an error in a column makes all of them narrow
			w.row(n.Node, "no answer")
			below += hang(oneLine(n.Error), 2, w.width) + "\n"
			continue
		default:
			w.row(n.Node, n.Error)
			continue
		}
		peer, versions, links := "none", "-", "-"
		if p := n.Status.Peer; p != nil {
			up := 0
			for _, l := range p.Links {
				if l.Up {
					up++
				}
			}
			peer, versions, links = fmt.Sprintf("%s %s", p.Info.Name, peerState(p.State)), "fit", fmt.Sprintf("%d of %d", up, len(p.Links))
		}
		if text := n.Status.PeerApart; text != "" {
			versions, below = "APART", below+hang(fmt.Sprintf("%s: %s", n.Node, text), 2, w.width)+"\n"
		}
		w.row(n.Node, n.Status.Version, fmt.Sprintf("%s %s", n.Status.Info.QEMU, n.Status.Info.Accel), fmt.Sprint(len(n.Status.VMs)), peer, versions, links, n.Status.Arbiter)
	}
	if err := w.flush(); err != nil {
		return err
	}
	_, err := io.WriteString(out, below)
	return err
}

// pickNode finds the node that an operand names; without one the only node of the context.
func (s *site) pickNode(name string) (*target, error) {
	if name == "" {
		if len(s.Nodes) == 1 {
			return s.Nodes[0], nil
		}
		return nil, usagef("which node? the context %s has: %s", s.Context, s.names())
	}
	for _, t := range s.Nodes {
		if t.String() == name {
			return t, nil
		}
	}
	return nil, usagef("no node %s in the context %s, which has: %s", name, s.Context, s.names())
}

func (s *site) names() string {
	var out []string
	for _, t := range s.Nodes {
		out = append(out, t.String())
	}
	return strings.Join(out, ", ")
}

func nodeShow(cc *cli.Context, s *site) error {
	t, err := s.pickNode(cc.Args().First())
	if err != nil {
		return err
	}
	n, err := t.Node(cc.Context)
	if err != nil {
		return attempt(err, "show node", t.String(), nil)
	}
	h, err := t.Health(cc.Context)
	if err != nil {
		return attempt(err, "ask for the health of", t.String(), nil)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, struct {
			api.NodeStatus
			Health api.Health `json:"health"`
		}{n, h})
	}
	w := table(cc.App.Writer, "node", n.Info.Name)
	w.row("daemon", fmt.Sprintf("%s, up for %s", n.Version, short(time.Since(n.Begun))))
	w.row("QEMU", fmt.Sprintf("%s, %s", n.Info.QEMU, n.Info.Accel))
	w.row("VMs", strings.Join(n.VMs, ", "))
	w.row("arbiter", n.Arbiter)
	if c := n.Capacity; c != nil {
		w.row("memory", fmt.Sprintf("%s reserved for VMs of %s", c.Reserved.Memory, limit(c.Limits.Memory > 0, c.Limits.Memory)))
		w.row("virtual CPUs", fmt.Sprintf("%d reserved for VMs of %s", c.Reserved.VCPUs, limit(c.Limits.VCPUs > 0, c.Limits.VCPUs)))
		for _, r := range c.VMs {
			w.row("reserved", fmt.Sprintf("%s: %s, %d virtual CPUs", r.VM, r.Memory, r.VCPUs))
		}
	}
	for _, l := range n.Info.Links {
		w.row("link "+l.Name, l.Address.String())
	}
	w.row("you are", fmt.Sprintf("%s, by %s", n.You, n.You.Via))
	for _, i := range h.Items {
		state := "ok"
		if !i.OK {
			state = "NOT OK"
		}
		w.row("health", fmt.Sprintf("%s: %s: %s", state, i.Name, i.Text))
	}
	return w.flush()
}

// limit is a limit as people read it.
func limit(is bool, l any) string {
	if !is {
		return "what there is (no limit)"
	}
	return fmt.Sprint(l)
}

// rebootItem is what the reboot of a node means for one VM.
type rebootItem struct {
	VM     string `json:"vm"`
	Safe   bool   `json:"safe"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// errUnsafe is returned when a reboot would stop a VM.
var errUnsafe = errors.New("not safe to reboot")

func nodeSafe(cc *cli.Context, s *site) error {
	t, err := s.pickNode(cc.Args().First())
	if err != nil {
		return err
	}
	n, err := t.Node(cc.Context)
	if err != nil {
		return &taskError{"ask whether " + t.String() + " is safe to reboot", err, "is colod running there? if that host is off already, where its VMs run now says: coloctl status"}
	}
	items := []rebootItem{}
	safe := true
	for _, vm := range n.VMs {
		halves, err := s.Look(cc.Context, vm)
		if errors.Is(err, colo.ErrNoVM) {
			continue // deleted in this moment
		}
		if err != nil {
			return attempt(err, "ask about", vm, t)
		}
		i := rebootRisk(vm, n.Info.Name, halves)
		items, safe = append(items, i), safe && i.Safe
	}
	if f := format(cc); f != lab.FormatTable {
		if err := lab.Encode(cc.App.Writer, f, map[string]any{"node": n.Info.Name, "safe": safe, "vms": items}); err != nil {
			return err
		}
	} else {
		word := "yes"
		if !safe {
			word = "NO"
		}
		fmt.Fprintf(cc.App.Writer, "%s: safe to reboot: %s\n", n.Info.Name, word)
		for _, i := range items {
			width := widthOf(cc.App.Writer)
			fmt.Fprintln(cc.App.Writer, hang(fmt.Sprintf("  %s: %s", i.VM, i.Text), 4, width))
			if i.Remedy != "" {
				fmt.Fprintln(cc.App.Writer, hang("    "+i.Remedy, 6, width))
			}
		}
	}
	if !safe {
		return &taskError{n.Info.Name, errUnsafe, "what is said above, or: coloctl status"}
	}
	return nil
}

// rebootRisk says what the reboot of a node means for a VM that it has a half of.
func rebootRisk(vm, node string, halves []half) rebootItem {
	i := rebootItem{VM: vm}
	var here, there *colo.Status
	for _, h := range halves {
		switch {
		case !h.Has():
		case h.Node == node:
			here = h.Status
		default:
			there = h.Status
		}
	}
	v := both.Judge(halves)
	switch {
	case here == nil:
		i.Text, i.Remedy = "how it stands here is not known", "see: coloctl status "+vm
	case here.State == colo.Arbitrating:
		i.Text, i.Remedy = "waits here to learn who may go on", "wait, or see: coloctl status "+vm
	case here.State == colo.Protected && v.Protected:
		i.Safe, i.Text = true, "runs here, protected: it goes on on "+here.Peer+", as after a loss of this node"
		i.Remedy = "without that moment: coloctl switchover " + vm
	case here.State == colo.Protected && there != nil && there.State == colo.Secondary:
		i.Text = fmt.Sprintf("runs here, and its copy on %s could not go on now (%s): it would stop", there.Node, v.Reason)
		i.Remedy = "mend that first, see: coloctl status " + vm
	case both.RunsAsPrimary(here.State) && here.State != colo.Starting && here.State != colo.Stopping:
		i.Text = fmt.Sprintf("runs here, and only here (%s): it would stop", v.Reason)
		i.Remedy = fmt.Sprintf("coloctl protect %s, then coloctl switchover %s", vm, vm)
	case here.State == colo.Starting, here.State == colo.Stopping:
		i.Text, i.Remedy = "is "+string(here.State), "wait for its end"
	case here.State == colo.Secondary && (there == nil || !both.RunsAsPrimary(there.State)):
		i.Text, i.Remedy = "its secondary is here, and whether its primary runs is not known", "see: coloctl status "+vm
	case here.State == colo.Secondary && there.State == colo.Protected && !v.Protected:
		i.Text = fmt.Sprintf("runs on %s, which may have to wait without this node (%s): it would stop", there.Node, v.Reason)
		i.Remedy = fmt.Sprintf("mend that first, or give protection up before: coloctl unprotect %s", vm)
	case here.State == colo.Secondary, here.State == colo.Standby:
		i.Safe, i.Text = true, "runs on "+here.Peer+", alone until this node is back"
	case there != nil && both.RunsAsPrimary(there.State):
		i.Safe, i.Text = true, "runs on "+there.Node
	default:
		i.Safe, i.Text = true, "does not run here ("+string(here.State)+")"
	}
	return i
}
