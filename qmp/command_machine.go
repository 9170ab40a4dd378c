package qmp

import "context"

// Machine is a type of machine that a QEMU knows.
type Machine struct {
	Name       string `json:"name"`
	Alias      string `json:"alias,omitempty"` // such as pc, of the newest of its kind
	CPUMax     int    `json:"cpu-max"`
	Deprecated bool   `json:"deprecated"`
}

// QueryMachines lists the types of machines. A QEMU without a machine, -M none, answers it too.
func (c *Client) QueryMachines(ctx context.Context) ([]Machine, error) {
	var l []Machine
	err := c.Execute(ctx, "query-machines", nil, &l)
	return l, err
}

// CPUModel is a model of CPU that a QEMU knows. Whether this host can run it is another question.
type CPUModel struct {
	Name       string `json:"name"`
	Deprecated bool   `json:"deprecated,omitempty"`
}

// QueryCPUModels lists the models of CPUs. A QEMU without a machine, -M none, answers it too.
func (c *Client) QueryCPUModels(ctx context.Context) ([]CPUModel, error) {
	var l []CPUModel
	err := c.Execute(ctx, "query-cpu-definitions", nil, &l)
	return l, err
}
