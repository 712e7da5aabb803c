/* Logs every access to a traced range: the pages are closed, a fault opens the page it hit for
 * one instruction (trap flag), and the trap closes all again. x86-64 Linux. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define PAGE 4096UL
#define TRAP_FLAG 0x100
#define FAULT_WAS_WRITE 2
#define EVENTS 64

static unsigned long start, end;
static struct sigaction old_segv, old_trap;
static struct { unsigned long offset; int is_write; } events[EVENTS];
static int count;

static void on_fault(int number, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	unsigned long address = (unsigned long)info->si_addr;

	(void)number;
	if (address < start || address >= end) {
		sigaction(SIGSEGV, &old_segv, NULL); /* not ours: happens again, to whom it concerns */
		return;
	}
	if (count < EVENTS) {
		events[count].offset = address - start;
		events[count].is_write = !!(registers[REG_ERR] & FAULT_WAS_WRITE);
	}
	count++;
	mprotect((void *)(address & ~(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE);
	registers[REG_EFL] |= TRAP_FLAG;
}

static void on_trap(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
	mprotect((void *)start, end - start, PROT_NONE);
}

int trace_begin(unsigned long address, unsigned long length)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_flags = SA_SIGINFO;
	action.sa_sigaction = on_fault;
	sigaction(SIGSEGV, &action, &old_segv);
	action.sa_sigaction = on_trap;
	sigaction(SIGTRAP, &action, &old_trap);
	start = address;
	end = address + length;
	count = 0;
	return mprotect((void *)start, length, PROT_NONE);
}

int trace_end(void)
{
	mprotect((void *)start, end - start, PROT_READ | PROT_WRITE);
	sigaction(SIGSEGV, &old_segv, NULL);
	sigaction(SIGTRAP, &old_trap, NULL);
	return count;
}

unsigned long trace_offset(int index) { return events[index].offset; }
int trace_is_write(int index) { return events[index].is_write; }
