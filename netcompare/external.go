package netcompare

import (
	"path/filepath"

	"github.com/coloctl/coloctl/netcompare/comparer"
)

// A comparer outside of QEMU gets the packets of both copies through unix sockets that QEMU listens on. The stream from the
// secondary still comes to QEMU, which has the keys for it, and whose yank can cut it. What the guest says goes through the
// filters from the last to the first:
//
//	redirector to the process      while it is connected it takes all that the guest says
//	sink 1                         takes the guest's packets when the process is gone: they must not leave
//	redirector from the secondary  puts the secondary's packets in here
//	redirector to the process      takes them out again, into the process's other socket
//	sink 2                         takes the secondary's packets when the process is gone
//	redirector from the process    puts in what was released; behind it is only the tap
//	mirror                         of the other direction
//
// A redirector whose chardev isn't connected lets packets pass. A chardev that is a file is always connected: the sinks are
// redirectors into /dev/null.
func (n NIC) externalParts(o Options, filter func(kind, id string, props map[string]any) part) []part {
	path := func(id string) string { return filepath.Join(o.SocketDir, id+".sock") }
	var parts []part
	for _, id := range []string{n.compareIn(), n.secondaryOut(), n.compareOut()} {
		p := part{id: id}
		p.socket.Unix, p.socket.Server = path(id), true
		parts = append(parts, p)
	}
	for i := range 2 {
		parts = append(parts, part{id: n.sinkDev(i + 1), sink: true})
	}
	redirect := func(id, dev, chardev string) part {
		return filter("filter-redirector", id, map[string]any{"queue": "rx", dev: chardev, "status": "off"})
	}
	released := filter("filter-redirector", n.released(), map[string]any{"queue": "rx", "indev": n.compareOut()})
	return append(parts,
		filter("filter-mirror", n.mirror(), map[string]any{"queue": "tx", "outdev": n.mirrorStream(), "status": "off"}),
		released,
		redirect(n.sink(2), "outdev", n.sinkDev(2)),
		redirect(n.toProcess(), "outdev", n.secondaryOut()),
		redirect(n.fromPeer(), "indev", n.compareStream()),
		redirect(n.sink(1), "outdev", n.sinkDev(1)),
		redirect(n.toCompare(), "outdev", n.compareIn()),
	)
}

// ComparerNICs says how the process that compares finds the parts that Connect has made with External.
func ComparerNICs(nics []NIC, o Options) []comparer.NIC {
	path := func(id string) string { return filepath.Join(o.SocketDir, id+".sock") }
	out := make([]comparer.NIC, len(nics))
	for i, n := range nics {
		// The process makes the reader anew, where it was: right before the second sink.
		reader := n.filter("filter-redirector", n.released(), map[string]any{
			"queue": "rx", "indev": n.compareOut(), "insert": "before", "position": "id=" + n.sink(2),
		})
		out[i] = comparer.NIC{Name: n.Name, VNetHdr: n.vnetHdr(), Primary: path(n.compareIn()), Secondary: path(n.secondaryOut()), Out: path(n.compareOut()),
			Reader: comparer.Object{ID: reader.id, Type: reader.kind, Props: reader.props}}
	}
	return out
}

// switched are the filters of n that Enable switches on, in this order, and Disable off in the reverse one: the guest's
// packets must meet a sink before they could meet what is for the secondary's.
func (have inventory) switched(n NIC) []string {
	if !have.objects[n.sink(1)] {
		return []string{n.mirror(), n.toCompare()}
	}
	return []string{n.mirror(), n.sink(2), n.toProcess(), n.fromPeer(), n.sink(1), n.toCompare()}
}

// unique keeps the first part of each id.
func unique(parts []part) []part {
	seen := map[string]bool{}
	out := parts[:0]
	for _, p := range parts {
		if !seen[p.id] {
			seen[p.id] = true
			out = append(out, p)
		}
	}
	return out
}
