package sim

// Mutants take minutes each, more than CI has: they run only when they are asked for, with -sim.mutants on the command line.
func init() { *mutants = false }
