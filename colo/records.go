package colo

import "github.com/coloctl/coloctl/state"

// Records is where a node keeps what it must still know after its own end. A [state.Store] does that; the simulator has one that forgets
// what was not yet durable when its host loses power.
type Records interface {
	List() ([]state.VM, error)
	Get(name string) (state.VM, error)
	Create(v state.VM) error
	Delete(name string) error
	Ports(vm string, uses []string, usable func(port int) bool) (map[string]int, error)
	ReleasePorts(vm string, uses ...string) error
	// Write runs do in a transaction: when it returns nil all of do's changes are durable, otherwise there is none.
	Write(do func(RecordsTx) error) error
}

// RecordsTx is one transaction, with the methods of [state.Tx].
type RecordsTx interface {
	Update(name string, change func(*state.VM) error) error
	Append(e state.Entry) (uint64, error)
	OpenIntents() ([]state.Intent, error)
	Begin(in state.Intent) (uint64, error)
	StepDone(id uint64, i int, err error) error
	End(id uint64, outcome state.Outcome) error
}

// storeRecords makes Records of a Store.
type storeRecords struct {
	*state.Store
	ports state.PortRange // the node's
}

func (s storeRecords) Ports(vm string, uses []string, usable func(port int) bool) (map[string]int, error) {
	return s.PortsIn(s.ports, vm, uses, usable)
}

func (s storeRecords) Write(do func(RecordsTx) error) error {
	return s.Do(func(tx *state.Tx) error { return do(tx) })
}
