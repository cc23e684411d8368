/* Includes the header and calls nothing; run.sh looks at what gets linked. */
#include <hypatia/hypatia.h>

int main(void) { return 0; }
