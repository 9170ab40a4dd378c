package colo

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

// TestChooseSync: each line of the table, and what is next to it.
func TestChooseSync(t *testing.T) {
	spec := &Spec{Disks: []DiskSpec{{Name: "a", Size: 100}, {Name: "b", Size: 300}}}
	base := &state.Base{Peer: "n2", Generation: 7}
	resync := func(mode blockrepl.Mode, compared map[string]int64) *state.Resync {
		return &state.Resync{ID: "r", Peer: "n2", Mode: string(mode), Compared: compared}
	}
	half := map[string]int64{"a": 100, "b": 100}
	for name, c := range map[string]struct {
		rec     state.VM
		covered bool
		reply   PrepareReply
		mode    blockrepl.Mode
		why     string
		goesOn  bool
	}{
		"new disks":                        {state.VM{Base: base}, true, PrepareReply{New: true}, blockrepl.Full, "are new", false},
		"the QEMU lived on":                {state.VM{Base: base}, true, PrepareReply{SyncedAt: 7}, blockrepl.Bitmap, "is on record", false},
		"the QEMU was restarted":           {state.VM{Base: base}, false, PrepareReply{SyncedAt: 7}, blockrepl.Checksum, "no record", false},
		"another generation":               {state.VM{Base: base}, true, PrepareReply{SyncedAt: 6}, blockrepl.Checksum, "generation 6", false},
		"another peer":                     {state.VM{Base: &state.Base{Peer: "n3", Generation: 7}}, true, PrepareReply{SyncedAt: 7}, blockrepl.Checksum, "does not begin", false},
		"the peer wrote":                   {state.VM{Base: base}, true, PrepareReply{}, blockrepl.Checksum, "written by a copy of its own", false},
		"an interrupted comparison":        {state.VM{Resync: resync(blockrepl.Checksum, half)}, true, PrepareReply{Resync: "r"}, blockrepl.Checksum, "goes on at 50%", true},
		"one that had not begun":           {state.VM{Resync: resync(blockrepl.Checksum, nil)}, true, PrepareReply{Resync: "r"}, blockrepl.Checksum, "does not begin", false},
		"its QEMU has ended":               {state.VM{Resync: resync(blockrepl.Checksum, half)}, false, PrepareReply{Resync: "r"}, blockrepl.Checksum, "no record", false},
		"somebody else wrote there":        {state.VM{Resync: resync(blockrepl.Checksum, half)}, true, PrepareReply{Resync: "x"}, blockrepl.Checksum, "does not begin", false},
		"nobody knows who wrote there":     {state.VM{Resync: &state.Resync{Peer: "n2", Mode: "checksum", Compared: half}}, true, PrepareReply{}, blockrepl.Checksum, "does not begin", false},
		"an interrupted bitmap resync":     {state.VM{Resync: resync(blockrepl.Bitmap, nil)}, true, PrepareReply{Resync: "r"}, blockrepl.Bitmap, "interrupted", false},
		"an interrupted full resync":       {state.VM{Resync: resync(blockrepl.Full, nil)}, true, PrepareReply{Resync: "r"}, blockrepl.Checksum, "does not begin", false},
		"an interrupted one to another":    {state.VM{Resync: &state.Resync{ID: "r", Peer: "n3", Mode: "bitmap"}}, true, PrepareReply{Resync: "r"}, blockrepl.Checksum, "does not begin", false},
		"interrupted before it sent bytes": {state.VM{Base: base, Resync: resync("", nil)}, true, PrepareReply{Resync: "r"}, blockrepl.Checksum, "not finished", false},
	} {
		w := chooseSync(c.rec, spec, c.covered, "n2", c.reply)
		if w.mode != c.mode || !strings.Contains(w.why, c.why) || (w.from != nil) != c.goesOn {
			t.Errorf("%s: %+v", name, w)
		}
	}
}
